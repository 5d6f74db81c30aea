"""Serving: the real decision call against handlers that do nothing, alone and in batches."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import load
from benchmarks.database import make_database, postgres
from benchmarks.load import Load
from benchmarks.measure import Effort, cores
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import (
    API_KEY,
    BARE,
    DECIDE,
    DECIDE_BATCH,
    EMPTY,
    EMPTY_MESSAGES,
    request,
    running,
)
from recparams.v1 import recommendation_pb2 as pb

CONCURRENCIES = (1, 16, 64)
BATCH = 64
AIO, MESSAGES, SYNC = "empty aio handler", "empty aio handler, messages", "empty sync server"
REAL, PYTHON = "GetRecommendationParams", "the same, our Python client"
ALONE, GUARDED = "the same, nothing around the decision", "the same, with keys and rates"
Bursts = dict[str, list[Load]]


def run(effort: Effort, folder: Path) -> Section:
    """Measures calls of one decision and of 64."""
    if load.H2LOAD is None:
        return Section(
            "Serving", ["h2load is not installed (Debian: nghttp2-client): not measured."]
        )
    serving, loading = cores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        database = make_database(stack.enter_context(postgres()), "serving", 0)
        port, real = stack.enter_context(running("real", serving, database, scratch))
        guarded_port, guarded = stack.enter_context(running("guarded", serving, database, scratch))
        sync_port, sync = stack.enter_context(running("sync", serving))
        servers = {port: real, guarded_port: guarded, sync_port: sync}
        body = request(5).SerializeToString()
        batch = pb.BatchGetRecommendationParamsRequest(
            requests=[request(person) for person in range(BATCH)]
        ).SerializeToString()

        def h2load(port: int, path: str, message: bytes, calls: int, concurrency: int) -> Load:
            return load.h2load(
                port,
                path,
                message,
                calls=calls,
                concurrency=concurrency,
                core=loading,
                server=servers[port],
                headers=[f"x-api-key: {API_KEY}"] if port == guarded_port else [],
            )

        calls, rounds = effort.of(4000, 200), effort.of(9, 1)
        by_concurrency: dict[int, Bursts] = {}
        for concurrency in CONCURRENCIES[: effort.of(3, 1)]:
            by_concurrency[concurrency] = _rounds(
                {
                    AIO: lambda c=concurrency: h2load(port, EMPTY, body, calls, c),
                    MESSAGES: lambda c=concurrency: h2load(port, EMPTY_MESSAGES, body, calls, c),
                    REAL: lambda c=concurrency: h2load(port, DECIDE, body, calls, c),
                    ALONE: lambda c=concurrency: h2load(port, BARE, body, calls, c),
                    GUARDED: lambda c=concurrency: h2load(guarded_port, DECIDE, body, calls, c),
                    SYNC: lambda c=concurrency: h2load(sync_port, EMPTY, body, calls, c),
                    PYTHON: lambda c=concurrency: load.python_client(
                        port, calls=calls, concurrency=c, core=loading, server=real
                    ),
                },
                rounds,
            )
        batches = _rounds(
            {
                REAL: lambda: h2load(port, DECIDE, body, calls, 4),
                "batch": lambda: h2load(port, DECIDE_BATCH, batch, max(64, calls // 8), 4),
            },
            rounds,
        )
    return _section(by_concurrency, batches)


def _rounds(candidates: dict[str, Callable[[], Load]], rounds: int) -> Bursts:
    """Bursts by candidate, each round one of every candidate in turn; the first is not counted."""
    found: Bursts = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, burst in candidates.items():
            measured = burst()
            if turn:
                found[name].append(measured)
    return found


def _median(bursts: list[Load], of: Callable[[Load], float]) -> float:
    return statistics.median(of(burst) for burst in bursts)


def _ratio(bursts: Bursts, name: str, other: str) -> float:
    """Median over rounds of calls/s as a ratio to another's in the same round."""
    return statistics.median(
        one.calls_per_second / two.calls_per_second
        for one, two in zip(bursts[name], bursts[other], strict=True)
    )


def _section(by_concurrency: dict[int, Bursts], batches: Bursts) -> Section:
    rows = [
        [
            name,
            str(concurrency),
            f"{_median(bursts[name], lambda one: one.calls_per_second):,.0f}",
            f"{_median(bursts[name], lambda one: one.p50) * 1e6:,.0f}",
            f"{_median(bursts[name], lambda one: one.p99) * 1e6:,.0f}",
            f"{_median(bursts[name], lambda one: one.cpu) * 1e6:,.0f}",
            f"{_ratio(bursts, name, AIO):.3f}",
        ]
        for concurrency, bursts in by_concurrency.items()
        for name in bursts
    ]
    ratios = {
        reference: [_ratio(bursts, REAL, reference) for bursts in by_concurrency.values()]
        for reference in (AIO, MESSAGES)
    }
    decisions = BATCH * _ratio(batches, "batch", REAL)
    each = 1e6 / (BATCH * _median(batches["batch"], lambda one: one.calls_per_second))
    return Section(
        "Serving",
        [
            "Server and load on a core each; h2load over one connection with so many streams at a "
            "time, and our Python client with as many callers, each deciding for another person. "
            "The aio handlers are registered in the real server: same process, same event loop. "
            "*Messages* parses the request and returns an empty response, as a generated stub "
            "has it; the other takes and gives bytes. The decision has its token, propensity, "
            "exploration (0.1) and counters. Processor time is the server's, system time included.",
            Table(
                ("what", "at a time", "calls/s", "p50, us", "p99, us", "CPU a call, us", "of aio"),
                rows,
            ),
            "*Nothing around the decision* is its handler alone, calls neither counted nor timed; "
            "*with keys and rates* is a server that looks up each caller's key and role and keeps "
            "its rate.",
            f"In a batch of {BATCH}, 4 batches at a time, a decision takes {each:.1f} us.",
        ],
        goals=[
            Goal(
                "GetRecommendationParams, calls/s",
                "empty grpc.aio handler of the same messages, same event loop",
                min(ratios[MESSAGES]),
                0.95,
                shortfall=_why(by_concurrency, MESSAGES),
            ),
            Goal(
                "GetRecommendationParams, calls/s",
                "empty grpc.aio handler of bytes, same event loop",
                min(ratios[AIO]),
                0.95,
                shortfall=_why(by_concurrency, AIO),
            ),
            Goal(
                f"batch of {BATCH}, decisions/s",
                "unary calls/s",
                decisions,
                25,
                shortfall=f"{each:.1f} us a decision, grpc's share of a batch included",
            ),
        ],
    )


def _why(by_concurrency: dict[int, Bursts], reference: str) -> str:
    extra = statistics.median(
        _median(bursts[REAL], lambda one: one.cpu) - _median(bursts[reference], lambda one: one.cpu)
        for bursts in by_concurrency.values()
    )
    return f"{extra * 1e6:.0f} us of processor time a call are ours"
