"""Workers: `recparams serve --workers N` under load, several processes on one port."""

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import load
from benchmarks.database import make_database, postgres
from benchmarks.measure import Effort
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import DECIDE, request, wait_ready
from recparams_simulation.demo_server import end, free_port

CONNECTIONS, STREAMS = 16, 8


@contextlib.contextmanager
def _serving(
    workers: int, cores: str, database: str, folder: Path
) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port("127.0.0.1", 0)
    command = ["taskset", "-c", cores, sys.executable, "-m", "recparams_server.cli", "serve"]
    command += ["--port", str(port), "--workers", str(workers)]
    command += ["--exploration", "0.1", "--log-level", "error"]
    given = {"RECPARAMS_DATABASE_URL": database, "RECPARAMS_DATA_DIR": str(folder)}
    process = subprocess.Popen(command, env={**os.environ, **given})
    try:
        wait_ready(port, health=True)
        yield port, psutil.Process(process.pid)
    finally:
        end(process)


def run(effort: Effort, folder: Path) -> Section:
    """Measures calls/s of one worker on a core, and of one and two on all cores."""
    if load.H2LOAD is None:
        return Section("Workers", ["h2load is not installed (Debian: nghttp2-client)."])
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    both = ",".join(cores[:2])
    settings = {
        "one worker, one core": (1, cores[0]),
        "one worker, two cores": (1, both),
        "two workers, two cores": (2, both),
    }
    calls, rounds = effort.of(20_000, 500), effort.of(7, 1)
    body = request(5).SerializeToString()
    rates: dict[str, list[float]] = {name: [] for name in settings}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        database = make_database(stack.enter_context(postgres()), "workers", 0)
        servers = {
            name: stack.enter_context(_serving(*setting, database, scratch))
            for name, setting in settings.items()
        }
        for turn in range(rounds + 1):
            for name, (port, process) in servers.items():
                burst = load.h2load(
                    port,
                    DECIDE,
                    body,
                    calls=calls,
                    concurrency=STREAMS,
                    core=both,
                    server=process,
                    connections=CONNECTIONS,
                )
                if turn:
                    rates[name].append(burst.calls_per_second)
    one, _, two = rates.values()
    return Section(
        "Workers",
        [
            f"`recparams serve --workers N`; h2load with {CONNECTIONS} connections of {STREAMS} "
            f"streams runs on the same cores, of which the machine has {len(cores)}. A process "
            "without a core of its own gets more than one core's worth of calls, since gRPC's "
            "input and output run beside the event loop.",
            Table(
                ("what", "calls/s"),
                [[name, f"{statistics.median(found):,.0f}"] for name, found in rates.items()],
            ),
        ],
        goals=[
            Goal(
                "two workers on two cores, calls/s",
                "one worker on one core",
                statistics.median(b / a for a, b in zip(one, two, strict=True)),
                1.6,
                shortfall="the load generator has its share of both cores",
            )
        ],
    )
