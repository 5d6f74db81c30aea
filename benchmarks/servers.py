"""Servers to measure, each a process of its own: `python -m benchmarks.servers KIND PORT ...`.

`real` is the service with handlers beside it on the same event loop that are empty, or decide with
nothing around; `guarded` is the same with roles by key and a rate for each caller; `sync` is an
empty handler on grpc's threaded server.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.loop_meter import LoopMeter
from recparams.v1 import recommendation_pb2 as pb
from recparams_server.app import App
from recparams_server.garbage import Portions
from recparams_server.observability import logs
from recparams_server.services.recommendation import RecommendationService
from recparams_server.settings import Settings
from recparams_server.settings.callers import key_hash
from recparams_simulation.demo_server import end, free_port

BESIDE = "benchmarks.Beside"
EMPTY, EMPTY_MESSAGES, BARE, STALLS, COLLECTED, LOOK = (
    f"/{BESIDE}/{name}"
    for name in (
        "Empty",
        "EmptyMessages",
        "Bare",
        "Stalls",
        "Collected",
        "LookThroughEverything",
    )
)
DECIDE = "/recparams.v1.RecommendationService/GetRecommendationParams"
API_KEY = "an-api-key-for-benchmarks"
ADMIN_KEY = "a-key-for-benchmarks"
DECIDE_BATCH = "/recparams.v1.RecommendationService/BatchGetRecommendationParams"


def _add(server: Any, handlers: Mapping[str, Any]) -> None:
    """Registers handlers by path. Those of one server together: gRPC asks each lot in turn."""
    by_name = {path.rpartition("/")[2]: handler for path, handler in handlers.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(BESIDE, by_name)])


async def _empty(request: bytes, context: Any) -> bytes:
    return b""


async def _empty_messages(
    request: pb.GetRecommendationParamsRequest, context: Any
) -> pb.GetRecommendationParamsResponse:
    return pb.GetRecommendationParamsResponse()


async def _look(request: bytes, context: Any) -> bytes:
    """Looks through everything for garbage; returns the seconds of processor time, as JSON."""
    gc.unfreeze()
    began = time.thread_time()
    gc.collect()
    return json.dumps(time.thread_time() - began).encode()


async def _real(port: int, database_url: str, folder: str, *, guarded: bool) -> None:
    logs.configure("warning", "json")
    guard = {
        "authorization": "keys",
        "callers": f"load:recommend:{key_hash(API_KEY)}",
        "max_calls_per_second": 1e6,
    }
    settings = Settings(
        **(guard if guarded else {}),
        port=port,
        database_url=database_url,
        data_dir=folder,
        admin_key=ADMIN_KEY,
        exploration="0.1",
        metrics_port=0,
    )
    app = App(settings)
    service = RecommendationService(settings, app._runtime, app._cache)
    meter = LoopMeter()

    async def bare(request: bytes, context: Any) -> Any:
        return service.GetRecommendationParams(request, context)

    async def stalls(request: bytes, context: Any) -> bytes:
        return meter.take()

    portions = Portions()

    async def collected(request: bytes, context: Any) -> bytes:
        return json.dumps([gc.get_stats()[2]["collections"], portions.looks]).encode()

    handler = grpc.unary_unary_rpc_method_handler
    empty_messages = handler(
        _empty_messages,
        pb.GetRecommendationParamsRequest.FromString,
        pb.GetRecommendationParamsResponse.SerializeToString,
    )
    beside = {EMPTY: _empty, BARE: bare, STALLS: stalls, COLLECTED: collected, LOOK: _look}
    _add(
        app._grpc,
        {EMPTY_MESSAGES: empty_messages, **{path: handler(one) for path, one in beside.items()}},
    )
    await app.start()
    portions.start()
    collecting = asyncio.create_task(portions.follow())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    collecting.cancel()


def _sync(port: int) -> None:
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    _add(server, {EMPTY: grpc.unary_unary_rpc_method_handler(lambda request, context: b"")})
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.sigwait([signal.SIGTERM])


@contextlib.contextmanager
def running(
    kind: str, core: int, *arguments: str | Path, settings: Mapping[str, object] | None = None
) -> Iterator[tuple[int, psutil.Process]]:
    """A server of a kind, pinned to a core, with settings besides its own: its port and process."""
    port = free_port("127.0.0.1", 0)
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.servers", kind]
    given = {f"RECPARAMS_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    process = subprocess.Popen(
        [*command, str(port), *map(str, arguments)], env={**os.environ, **given}
    )
    try:
        measured = psutil.Process(process.pid)
        wait_ready(port, health=kind != "sync")
        yield port, measured
    finally:
        process.kill()
        end(process)


def wait_ready(port: int, *, health: bool, seconds: float = 120.0) -> None:
    """Returns when the server answers, and says that it is SERVING where it has health."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=seconds)
        stub = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + seconds
        while health and stub.Check(health_pb2.HealthCheckRequest()).status != 1:
            if time.monotonic() > deadline:
                raise TimeoutError("the server is not SERVING")
            time.sleep(0.1)


def scores(person: int) -> list[float]:
    """Five scores of one of many people, in the order of the traits."""
    return [(person * prime) % 1009 / 10.09 for prime in (7, 11, 13, 17, 19)]


def request(person: int) -> pb.GetRecommendationParamsRequest:
    """A request of one of many people."""
    names = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
    return pb.GetRecommendationParamsRequest(
        user_id=f"person-{person:08d}",
        personality=dict(zip(names, scores(person), strict=True)),
        content_type=1 + person % 3,
        mood=1 + person % 8,
        time_of_day=1 + person % 4,
    )


if __name__ == "__main__":
    kind, port, *rest = sys.argv[1:]
    if kind == "sync":
        _sync(int(port))
    else:
        uvloop.run(_real(int(port), *rest, guarded=kind == "guarded"))
