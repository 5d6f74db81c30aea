"""Evaluating: the job that the service starts, and the page that the command line makes of it.

`python -m benchmarks.evaluating` does one of them, in a process of its own.
"""

import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import numpy as np

from benchmarks.database import DAYS, WORK_SECONDS, make_database, postgres
from benchmarks.measure import BLAS_THREADS, Effort, peak_bytes
from benchmarks.report import Goal, Section, Table
from benchmarks.synthetic import random_model
from recparams.v1 import training_pb2 as pb
from recparams_server.jobs.requests import RANDOM, RULES, EvaluationRequest
from recparams_server.settings import Settings
from recparams_server.store import models

EACH = 8
"""Interactions of each person, about: few, since resampling takes people."""
SECONDS = 3.0, 20.0
"""To hold, of the smaller and the larger log."""
MEGABYTES = 500.0
"""To hold, of the larger one."""


@dataclass(frozen=True)
class Spent:
    """What a piece of work took: wall and processor seconds, and its process's peak in bytes."""

    seconds: float
    cpu: float
    peak: int


def run(effort: Effort, folder: Path) -> Section:
    """Evaluates a version, the rules and chance on a small and a large log."""
    sizes, rounds = [2_000] if effort.quick else [100_000, 1_000_000], effort.of(3, 1)
    rows, goals = [], []
    with postgres() as server, tempfile.TemporaryDirectory() as scratch:
        for size, hold in zip(sizes, SECONDS, strict=False):
            url = make_database(server, f"evaluating_{size}", size, each=EACH)
            version = asyncio.run(_store(url, effort))
            found = [_evaluate(effort, url, version, Path(scratch)) for _ in range(rounds)]
            jobs, pages = zip(*found, strict=True)
            job, page = (float(np.median([one.cpu for one in of])) for of in (jobs, pages))
            peak = max(one.peak for one in jobs) / 1e6
            rows.append(
                [
                    f"{size:,}",
                    f"{size // EACH:,}",
                    f"{job:.2f}",
                    f"{np.median([one.seconds for one in jobs]):.2f}",
                    f"{page:.2f}",
                    f"{peak:,.0f}",
                ]
            )
            goals.append(
                Goal(
                    f"evaluating {size:,} interactions, all estimates and the page",
                    "a second of one core",
                    job + page,
                    hold,
                    at_most=True,
                    shortfall=f"the job takes {job:.1f} s of it, the page {page:.1f} s",
                )
            )
    goals.append(
        Goal(
            f"memory of evaluating {sizes[-1]:,} interactions",
            "a megabyte",
            peak,
            MEGABYTES,
            at_most=True,
        )
    )
    return Section(
        "Evaluating",
        [
            "`recparams evaluate --html` of a version, the rules and chance: five estimators with "
            "both intervals, 30 segments, three objectives and all pairs. The job has imported "
            "what it needs, as the one that the server forks; making the page has not. BLAS has "
            "one thread. Processor time is system time included, and without that of Postgres.",
            Table(
                ("interactions", "people", "job, CPU s", "job, s", "page, CPU s", "peak, MB"),
                rows,
            ),
        ],
        goals=goals,
    )


async def _store(url: str, effort: Effort) -> int:
    """Stores a version that differs from the rules in many states; returns its number."""
    rng = np.random.default_rng(3)
    states = effort.space.n_states // 10
    model = random_model(rng, states, effort.space, effort.smoothing)
    connection = await asyncpg.connect(url)
    version = await models.insert(connection, models.encode(model))
    await connection.close()
    return version


def _evaluate(effort: Effort, url: str, version: int, folder: Path) -> tuple[Spent, Spent]:
    """Returns what evaluating all there is took, and what the page did."""
    answer, page = folder / "answer", folder / "page.html"
    given = {"database_url": url, "data_dir": folder, **effort.settings}
    environment = {f"RECPARAMS_{name.upper()}": str(value) for name, value in given.items()}

    def spent(*arguments: object) -> Spent:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.evaluating", *map(str, arguments)],
            env={**os.environ, BLAS_THREADS: "1", **environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=WORK_SECONDS,
        )
        return Spent(**json.loads(done.stdout))

    job = spent("job", version, answer)
    found = pb.EvaluateResponse.FromString(answer.read_bytes())
    if len(found.policies) != 3 or not found.policies[0].estimates[0].HasField("value"):
        raise RuntimeError("nothing was evaluated")
    return job, spent("page", answer, page)


def _job(version: int, answer: Path) -> None:
    from recparams_server.jobs.evaluation import evaluate

    settings, now = Settings(), datetime.now(UTC)
    request = EvaluationRequest(now - timedelta(days=DAYS + 2), now, (version, RULES, RANDOM))
    began, cpu = time.perf_counter(), time.process_time()
    with answer.open("wb") as output:
        asyncio.run(evaluate(settings, request, output))
    _tell(time.perf_counter() - began, time.process_time() - cpu)


def _page(answer: Path, page: Path) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    from recparams_server.cli.report import render

    found = pb.EvaluateResponse.FromString(answer.read_bytes())
    page.write_text(render(found, 0.95), encoding="utf-8")
    _tell(time.perf_counter() - began, time.process_time() - cpu)


def _tell(seconds: float, cpu: float) -> None:
    peak = peak_bytes(resource.getrusage(resource.RUSAGE_SELF))
    # On Linux that begins with what the process that started this one had in memory.
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        peak = int(found[1]) * 1024
    json.dump(asdict(Spent(seconds, cpu, peak)), sys.stdout)


if __name__ == "__main__":
    what, first, second = sys.argv[1:]
    if what == "job":
        _job(int(first), Path(second))
    else:
        _page(Path(first), Path(second))
