"""Load: h2load, a real HTTP/2 client, and our own Python client in a process of its own."""

import asyncio
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil
import uvloop

from benchmarks.servers import DECIDE, request
from recparams.v1 import recommendation_pb2 as pb

H2LOAD = shutil.which("h2load")
QUANTILES = 0.5, 0.99, 0.999
LOAD_SECONDS = 600
"""Bound on one burst of calls."""


@dataclass(frozen=True)
class Load:
    """What one burst of calls met.

    Attributes:
        calls_per_second: answered.
        p50, p99, p999: latency as the client sees it, seconds.
        cpu: seconds of processor time of the server a call, system time included.
    """

    calls_per_second: float
    p50: float
    p99: float
    p999: float
    cpu: float


def h2load(
    port: int,
    path: str,
    body: bytes,
    *,
    calls: int,
    concurrency: int,
    core: int | str,
    server: psutil.Process,
    connections: int = 1,
    headers: Sequence[str] = (),
    rate: float | None = None,
) -> Load:
    """Calls a method over connections with so many streams at a time on each.

    With a rate so many calls begin a second, whatever became of those before.

    Raises RuntimeError where not every call was answered.
    """
    with tempfile.TemporaryDirectory() as folder:
        message, times = Path(folder, "message"), Path(folder, "times")
        message.write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
        command = ["taskset", "-c", str(core), str(H2LOAD), "-n", str(calls)]
        command += [
            "-c",
            str(connections),
            "-m",
            str(concurrency),
            "-d",
            str(message),
            f"--log-file={times}",
        ]
        if rate is not None:
            command.append(f"--rps={max(1, round(rate / connections))}")
        for header in ("content-type: application/grpc", "te: trailers", *headers):
            command += ["-H", header]
        before = _cpu(server)
        done = subprocess.run(
            [*command, f"http://127.0.0.1:{port}{path}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=LOAD_SECONDS,
        )
        cpu = _cpu(server) - before
        if f"{calls} succeeded" not in done.stdout:
            raise RuntimeError(done.stdout)
        # Each line: start in microseconds, status, duration in microseconds.
        log = np.loadtxt(times, dtype=np.int64)
    took = log[:, 2] / 1e6
    seconds = (log[:, 0] + log[:, 2]).max() / 1e6 - log[:, 0].min() / 1e6
    return Load(calls / seconds, *np.quantile(took, QUANTILES), cpu / calls)


def python_client(
    port: int, *, calls: int, concurrency: int, core: int, server: psutil.Process
) -> Load:
    """Decides for `calls` different people with the generated stub's messages over grpc.aio."""
    before = _cpu(server)
    pinned = ["taskset", "-c", str(core)]
    done = subprocess.run(
        [*pinned, sys.executable, "-m", "benchmarks.load", str(port), str(calls), str(concurrency)],
        capture_output=True,
        text=True,
        check=True,
        timeout=LOAD_SECONDS,
    )
    found = json.loads(done.stdout)
    return Load(**found, cpu=(_cpu(server) - before) / calls)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _decide(port: int, calls: int, concurrency: int) -> dict[str, float]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            DECIDE,
            pb.GetRecommendationParamsRequest.SerializeToString,
            pb.GetRecommendationParamsResponse.FromString,
        )
        took: list[float] = []

        async def caller(people: Sequence[int]) -> None:
            for person in people:
                started = time.perf_counter()
                await call(request(person))
                took.append(time.perf_counter() - started)

        await call(request(0))
        started = time.perf_counter()
        await asyncio.gather(*(caller(range(i, calls, concurrency)) for i in range(concurrency)))
        seconds = time.perf_counter() - started
    p50, p99, p999 = map(float, np.quantile(took, QUANTILES))
    return {"calls_per_second": calls / seconds, "p50": p50, "p99": p99, "p999": p999}


if __name__ == "__main__":
    json.dump(uvloop.run(_decide(*map(int, sys.argv[1:]))), sys.stdout)
