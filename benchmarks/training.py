"""Training: from COPY to committed version, stage by stage."""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.database import Trained, ask, make_database, postgres, psql_copy, reset, train
from benchmarks.measure import Effort
from benchmarks.report import Goal, Section, Table

STAGES = {
    "reading": "read, encode, join watermarks",
    "preparing": "chain, sort by cell, split",
    "updating": "update, first half",
    "folding_in": "update, the held-out half",
    "smoothing": "smooth and encode the version, meanwhile evaluate the candidate",
    "evaluating": "evaluate, the rest",
}
READING, ALL = 0.85, 0.65
SMALL = {10_000: 1.5, 1_000_000: 4.0}
"""Seconds to hold from asking for a run to its commit, by interactions."""
THREADS = 1, 2


def run(effort: Effort, folder: Path) -> Section:
    """Trains small and large databases, each in turn with psql's COPY of the same rows."""
    sizes = effort.of(2_000_000, 4_000), effort.of(20_000_000, 6_000)
    rounds = effort.of(5, 1), effort.of(3, 1)
    rows, stage_rows, small_rows, goals = [], [], [], []
    settings = effort.settings
    with postgres() as server, TemporaryDirectory() as scratch:
        for interactions, hold in list(SMALL.items())[: effort.of(2, 1)]:
            size = effort.of(interactions, 1_000)
            url = make_database(server, f"asked_{interactions}", size)
            seconds = [
                ask(url, Path(scratch), rounds=effort.of(5, 1), training_threads=n, **settings)
                for n in THREADS[effort.of(0, 1) :]
            ]
            small_rows.append([f"{size:,}", *(f"{one:.2f}" for one in seconds), f"{hold}"])
            goals.append(
                Goal(
                    f"training {size:,} interactions from asking to commit, two threads",
                    "a second",
                    seconds[-1],
                    hold,
                    at_most=True,
                    shortfall="smoothing and choosing in every state of serving",
                )
            )
        for size, turns in zip(sizes, rounds, strict=True):
            url = make_database(server, f"training_{size}", size)
            copies, runs, two = [], [], []
            for _ in range(turns):
                reset(url)
                copies.append(psql_copy(url))
                runs.append(train(url, Path(scratch), threads=1, **settings))
                two.append(train(url, Path(scratch), threads=2, **settings))
            copy = statistics.median(copies)
            for threads, found in ((1, runs), (2, two)):
                seconds = statistics.median(one.seconds for one in found)
                rows.append(
                    [
                        f"{size:,}",
                        str(threads),
                        f"{copy:.2f}",
                        f"{seconds:.2f}",
                        f"{size / seconds:,.0f}",
                        f"{_ratio(copies, found):.2f}",
                        f"{max(one.peak for one in found) / 1e6:,.0f}",
                    ]
                )
            stage_rows.append((size, _stages(runs)))
            reading = statistics.median(
                c / one.stages["reading"] for c, one in zip(copies, runs, strict=True)
            )
            goals += [
                Goal(
                    f"{size:,} rows read into arrays, rows/s",
                    "psql COPY of the same query, binary, to /dev/null",
                    reading,
                    READING,
                    shortfall="Postgres's parallel workers and the trainer share the cores",
                ),
                Goal(
                    f"training {size:,} rows from start to commit, rows/s",
                    "the same COPY",
                    _ratio(copies, runs),
                    ALL,
                    shortfall=_why(stage_rows[-1][1]),
                ),
            ]
    (small, first), (large, second) = stage_rows
    return Section(
        "Training",
        [
            "The worker that the server starts, as a process of its own, on a first run over "
            f"everything: {small:,} and {large:,} interactions of a fiftieth as many people, on "
            "the same machine as Postgres. Seconds are of the whole process; *of COPY* is the "
            "time psql takes for the same query over that.",
            Table(
                ("rows", "threads", "COPY, s", "training, s", "rows/s", "of COPY", "peak, MB"),
                rows,
            ),
            "Median seconds from asking a server for a run over everything to its commit, the "
            "imports done, as for every run of a server but its first:",
            Table(("rows", "1 thread, s", "2 threads, s", "to hold, s"), small_rows),
            "Seconds by stage, one thread:",
            Table(
                ("stage", f"{small:,} rows", f"{large:,} rows", "ns a row, large"),
                [
                    [
                        name,
                        f"{first[name]:.2f}",
                        f"{second[name]:.2f}",
                        f"{second[name] / large * 1e9:,.0f}",
                    ]
                    for name in first
                ],
            ),
            "Memory is bounded by `training_memory_mb` (its default here): rows beyond it are on "
            "disk from reading to learning. What does not depend on rows is the table, its "
            "smoothing, and the evaluation of up to 500,000 held-out rows.",
        ],
        goals=goals,
    )


def _ratio(copies: list[float], runs: list[Trained]) -> float:
    return statistics.median(c / one.seconds for c, one in zip(copies, runs, strict=True))


def _stages(runs: list[Trained]) -> dict[str, float]:
    found = {
        text: statistics.median(one.stages.get(name, 0.0) for one in runs)
        for name, text in STAGES.items()
    }
    whole = statistics.median(one.seconds for one in runs)
    return {**found, "start the process, connect, write": whole - sum(found.values())}


def _why(stages: dict[str, float]) -> str:
    _reading, *others = stages
    most = sorted(others, key=lambda name: -stages[name])[:3]
    return "after reading: " + ", ".join(f"{name} {stages[name]:.1f} s" for name in most)
