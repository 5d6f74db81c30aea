"""The notebook, run cell by cell as its reader runs it: it shows what it prints."""

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run
from tests.support import ROOT

NOTEBOOK = ROOT / "examples/analysis.ipynb"

# Runs source after source in one namespace; says what each printed and how many figures it made.
RUNNER = """
import contextlib, io, json, sys
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.show = lambda: None
names = {"__name__": "__main__"}
for source in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(source, names)
    print(json.dumps([said.getvalue(), len(plt.get_fignums())]))
    plt.close("all")
"""

NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")
TOLERANCE = 0.03
"""Of estimates: processors differ in the last bit, and now and then a choice hangs on it."""


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    book = json.loads(NOTEBOOK.read_text())
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def stored(cell: dict[str, Any]) -> tuple[str, list[bytes]]:
    """The text and the pictures below a cell."""
    text, pictures = "", []
    for output in cell["outputs"]:
        assert output["output_type"] in ("stream", "display_data"), output
        text += "".join(output.get("text", []))
        if "data" in output:
            pictures.append(base64.b64decode("".join(output["data"]["image/png"])))
    return text, pictures


def test_it_was_run_from_top_to_bottom(cells: list[dict[str, Any]]) -> None:
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    pictures = [picture for cell in cells for picture in stored(cell)[1]]
    assert len(pictures) == 1 and pictures[0].startswith(b"\x89PNG")


def test_it_prints_what_it_shows(cells: list[dict[str, Any]], tmp_path: Path) -> None:
    """With what lies beside it alone: no server, no database, no setting."""
    sources = tmp_path / "sources.json"
    sources.write_text(json.dumps(["".join(cell["source"]) for cell in cells]))
    with sources.open() as given:
        done = run(
            *(sys.executable, "-W", "error", "-c", RUNNER),
            stdin=given,
            cwd=NOTEBOOK.parent,
            env={**os.environ, "DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"},
        )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for cell, (printed, figures) in zip(cells, answers, strict=True):
        text, pictures = stored(cell)
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", text)
        shown, found = (
            [float(one.replace(",", "")) for one in NUMBER.findall(of)] for of in (text, printed)
        )
        assert found == pytest.approx(shown, abs=TOLERANCE, rel=TOLERANCE), printed
        assert figures == len(pictures)
