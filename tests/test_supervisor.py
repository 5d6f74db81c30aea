"""`serve --workers`: several server processes on one port, and the supervisor over them."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil

from recparams.v1 import models_pb2 as mpb
from recparams_simulation.demo import DemoError
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, eventually
from tests.processes import GRACE_SECONDS, running
from tests.support import (
    ROOT,
    START_SECONDS,
    Client,
    ServerProcess,
    connect,
    environment,
    logged,
    record,
    request,
    start_in_vain,
    train,
    wait_serving,
)

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Without it, channels to one address share a connection, and so a worker."""


@contextlib.asynccontextmanager
async def fresh_clients(server: ServerProcess, count: int = 20) -> AsyncIterator[list[Client]]:
    """Clients with a connection each: enough of them to reach every one of two workers."""
    async with contextlib.AsyncExitStack() as opened:
        clients = [
            await opened.enter_async_context(connect(server.target, OWN_CONNECTION))
            for _ in range(count)
        ]
        await asyncio.gather(*(wait_serving(client) for client in clients))
        yield clients


def workers_of(server: ServerProcess) -> dict[int, psutil.Process]:
    """The processes that listen on the server's port, by pid."""
    return {
        child.pid: child
        for child in psutil.Process(server.process.pid).children()
        if any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == server.port
            for connection in child.net_connections("tcp")
        )
    }


def answering(server: ServerProcess) -> set[int]:
    """Pids of the workers that have a connection."""
    return {
        pid
        for pid, worker in workers_of(server).items()
        if any(
            connection.status == psutil.CONN_ESTABLISHED and connection.laddr.port == server.port
            for connection in worker.net_connections("tcp")
        )
    }


async def two_workers(server: ServerProcess) -> set[int]:
    """Pids of both workers, once both listen."""

    async def both() -> set[int]:
        pids = set(workers_of(server))
        return pids if len(pids) == 2 else set()

    return set(await eventually(both))


async def versions(clients: list[Client]) -> set[int]:
    """Versions that decide at the ends of these connections."""
    answers = await asyncio.gather(
        *(client.recommendation.GetRecommendationParams(request()) for client in clients)
    )
    return {answer.model_version for answer in answers}


async def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() for process in processes)


def two_free_ports() -> int:
    """The lower one of two neighbours."""
    while True:
        port = free_port("127.0.0.1", 0)
        with contextlib.suppress(DemoError):
            free_port("127.0.0.1", port + 1)
            return port


async def events(server: ServerProcess, event: str) -> list[dict[str, Any]]:
    """Log lines of an event."""
    return [line for line in server.events() if line.get("event") == event]


async def deaths(server: ServerProcess, pid: int) -> dict[str, Any] | None:
    """What was said of the death of a worker, if anything yet."""
    return next((line for line in await events(server, "worker died") if line["pid"] == pid), None)


def is_scraped(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return b"recparams_active_version" in answer.read()


async def test_two_workers_are_one_server(start_server: Any) -> None:
    server = start_server(workers=2, **SMALL)
    pids = await two_workers(server)
    async with fresh_clients(server) as clients:
        assert answering(server) == pids
        await record(clients[0], *(logged(f"i{n}", f"user-{n}") for n in range(20)))
        version = (await train(clients[0])).model_version
        assert version > 0

        async def all_have_it() -> bool:
            return await versions(clients) == {version}

        await eventually(all_have_it, 5)

    victim = min(pids)
    for pause in (0.1, 0.2):
        os.kill(victim, signal.SIGKILL)
        died = await eventually(lambda pid=victim: deaths(server, pid))
        assert (died["code"], died["restart_in"]) == (-signal.SIGKILL, pause)
        replaced = await two_workers(server)
        assert replaced & pids == {max(pids)}
        (victim,) = replaced - pids
    async with fresh_clients(server) as clients:
        assert answering(server) == replaced
        assert await versions(clients) == {version}

    refused = await asyncio.gather(
        *(asyncio.to_thread(start_in_vain, port=server.port, workers=n) for n in (1, 2))
    )
    for failed in refused:
        assert failed.returncode == 1
        assert failed.stderr.splitlines() == [
            f"recparams: cannot listen on {server.target}: is another server there? "
            "(--port takes another)"
        ]

    processes = psutil.Process(server.process.pid).children(recursive=True)
    assert await asyncio.to_thread(server.terminate) == 0
    await eventually(lambda: are_gone(processes))
    assert {line["worker"] for line in await events(server, "stopped")} == {0, 1}
    assert len(await events(server, "worker died")) == 2


async def test_workers_end_with_a_supervisor_that_is_killed(
    start_server: Any, tmp_path: Path
) -> None:
    port = two_free_ports()
    server = start_server(workers=2, metrics_port=port, admin_key="", **SMALL)
    pids = await two_workers(server)
    key = (("x-admin-key", (tmp_path / "admin-key").read_text()),)
    async with fresh_clients(server) as clients:
        assert answering(server) == pids
        for client in clients:
            await client.models.ListModels(mpb.ListModelsRequest(), metadata=key)
    for number in range(2):
        assert await asyncio.to_thread(is_scraped, port + number)

    processes = psutil.Process(server.process.pid).children(recursive=True)
    server.kill()
    await eventually(lambda: are_gone(processes))
    assert {line["worker"] for line in await events(server, "stopped")} == {0, 1}


async def test_a_worker_that_cannot_start_ends_them_all(tmp_path: Path) -> None:
    port = two_free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        failed = await asyncio.to_thread(
            start_in_vain, port=0, workers=2, metrics_port=port, data_dir=tmp_path
        )
    assert failed.returncode == 1
    (line,) = [line for line in failed.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith(f"recparams: metrics_port {port + 1}: ")


def test_ctrl_c_while_workers_start(tmp_path: Path) -> None:
    """It reaches every process of a terminal, also those that are not yet ready for it."""
    log = tmp_path / "log"
    with (
        log.open("wb") as file,
        running(
            *(sys.executable, "-m", "recparams_server.cli", "serve"),
            env=environment("postgresql:///nowhere", port=0, workers=2, data_dir=tmp_path),
            cwd=ROOT,
            stderr=file,
        ) as process,
    ):
        wait_until(lambda: is_importing(process.pid))
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(GRACE_SECONDS) == 0
    assert "Traceback" not in log.read_text()


def is_importing(supervisor: int) -> bool:
    """Whether a worker has come as far as to import gRPC."""
    for child in psutil.Process(supervisor).children():
        with contextlib.suppress(psutil.Error):
            if any("cygrpc" in loaded.path for loaded in child.memory_maps()):
                return True
    return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
