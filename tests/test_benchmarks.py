"""The benchmarks run, so that they cannot rot. What they measure in a few seconds means nothing."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks.report import Goal, Section, Table, goals_table
from tests.processes import run
from tests.support import ROOT

TITLES = (
    "Serving",
    "Workers",
    "Stalls",
    "Decisions in the caller's process",
    "Recording",
    "Training",
    "Evaluating",
    "Version change",
    "Growth",
    "Peers",
    "Learning",
    "Exploration",
    "Tuning",
)
SECONDS = 600


@pytest.mark.timeout(SECONDS)
def test_all_of_them_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = run(
        *(sys.executable, "-m", "benchmarks", "--quick", "--into", tmp_path),
        cwd=ROOT,
        env=environment,
        seconds=SECONDS - 30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "RESULTS.md").read_text()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        "Figures to hold",
        *TITLES,
    ]
    for name in ("goals.png", "growth.png", "learning-worlds.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in text
    assert "not installed" not in text.split("## Peers")[1]
    assert " of 10 are met" in text


def test_a_goal_that_is_missed_says_so() -> None:
    held = Goal("a", "b", 0.96, 0.95)
    short = Goal("a", "b", 0.94, 0.95, shortfall="too slow")
    worse = Goal("a", "b", 2.5, 2.0, at_most=True)
    lines = goals_table([held, short, worse]).markdown().splitlines()[2:]
    assert [goal.held for goal in (held, short, worse)] == [True, False, False]
    assert lines[0].endswith("| 0.96 | >= 0.95 | holds |")
    assert lines[1].endswith("| 0.94 | >= 0.95 | **falls short**: too slow |")
    assert lines[2].endswith("| 2.5 | <= 2 | **falls short** |")


def test_sections_become_markdown() -> None:
    section = Section("T", ["text", Table(("x", "y"), [("1", "2")])], charts={"alt": "c.png"})
    assert section.markdown() == (
        "## T\n\ntext\n\n| x | y |\n| --- | ---: |\n| 1 | 2 |\n\n![alt](c.png)"
    )
