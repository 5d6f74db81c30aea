"""The primary changes behind one address, and connections that reach a standby are not kept."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import grpc
import pytest

from benchmarks.soak.pooler import PROGRAM, PgBouncer
from recparams.v1 import recommendation_pb2 as pb
from recparams_server.store.database import create_pool
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, Address, OwnPostgres, Standby, eventually
from tests.support import (
    Client,
    connect,
    logged,
    own_folder,
    record,
    request,
    train,
    wait_serving,
)

DATABASE = "recparams"
CONNECTIONS = 8
"""The default size of the pool."""


@pytest.fixture
def primary() -> Iterator[OwnPostgres]:
    with own_folder() as folder:
        postgres = OwnPostgres(folder / "pg")
        yield postgres
        postgres.stop()


@pytest.fixture
async def address(primary: OwnPostgres) -> AsyncIterator[Address]:
    admin = await asyncpg.connect(primary.uri("postgres"))
    await admin.execute(f"CREATE DATABASE {DATABASE}")
    await admin.close()
    async with Address(primary.socket_folder) as one:
        yield one


@pytest.fixture
async def client(address: Address, start_server: Any) -> AsyncIterator[Client]:
    server = start_server(database_url=address.url(DATABASE), profile_cache_seconds=0.1, **SMALL)
    async with connect(server.target) as connected:
        await wait_serving(connected)
        yield connected


@pytest.fixture
async def standby(primary: OwnPostgres, client: Client) -> AsyncIterator[Standby]:
    """In a folder whose name is short enough for a socket."""
    with own_folder() as folder:
        await asyncio.to_thread(folder.chmod, 0o755)
        copied = await asyncio.to_thread(primary.copy, folder / "pg")
        await asyncio.to_thread(copied.start)
        yield copied
        await asyncio.to_thread(copied.stop)


async def recorded(client: Client, number: int) -> bool:
    try:
        await record(client, logged(f"i{number}", f"user-{number % 5}"))
    except grpc.aio.AioRpcError as failure:
        assert failure.code() == grpc.StatusCode.UNAVAILABLE, failure
        return False
    return True


async def change_roles(primary: OwnPostgres, standby: Standby) -> None:
    """The clients of the old primary come back to it while it is a standby, and stay there."""
    await asyncio.to_thread(primary.stop, "fast")
    await asyncio.to_thread(standby.promote)
    primary.follow(standby)
    await asyncio.to_thread(primary.start)


async def test_recording_goes_on_after_a_failover(
    primary: OwnPostgres, address: Address, client: Client, standby: Standby
) -> None:
    kept = [n for n in range(20) if await recorded(client, n)]
    assert len(kept) == 20
    await change_roles(primary, standby)
    deadline = time.monotonic() + 3.0
    before = address.accepted
    while time.monotonic() < deadline:
        await asyncio.gather(
            *(
                client.recommendation.GetRecommendationParams(
                    request(f"nobody-{n}", personality=None)
                )
                for n in range(2 * CONNECTIONS)
            )
        )
        assert not await recorded(client, 20)
    assert address.accepted > before
    address.folder = standby.folder
    switched = time.monotonic()

    async def records() -> bool:
        return await recorded(client, 20)

    await eventually(records)
    assert time.monotonic() - switched < 5.0
    done = await asyncio.gather(*(recorded(client, n) for n in range(21, 221)))
    assert all(done)

    async def profiles_are_read() -> bool:
        answer = await client.recommendation.GetRecommendationParams(
            request("nobody", personality=None)
        )
        return bool(answer.fallback_reason == pb.FALLBACK_REASON_NO_PROFILE)

    await eventually(profiles_are_read)
    assert (await train(client)).interactions_trained == 221


@pytest.fixture
def pooler(primary: OwnPostgres, address: Address, tmp_path: Path) -> Iterator[PgBouncer]:
    """In session mode, between a server and the address."""
    port = urlsplit(address.url(DATABASE)).port
    user = Path(primary.socket_folder).owner()
    database = f"host=127.0.0.1 port={port} user=postgres"
    one = PgBouncer(tmp_path / "pooler", free_port("127.0.0.1", 0), database, user=user)
    one.start()
    yield one
    one.stop()


@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
async def test_recording_goes_on_after_a_failover_behind_a_pooler(
    primary: OwnPostgres,
    address: Address,
    standby: Standby,
    pooler: PgBouncer,
    start_server: Any,
) -> None:
    """The old primary stays up, and so do the sessions with it that the pooler would deal out."""
    url = f"postgresql://postgres@127.0.0.1:{pooler.port}/{DATABASE}?sslmode=disable"
    server = start_server(database_url=url, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await asyncio.gather(*(recorded(client, n) for n in range(2 * CONNECTIONS)))
        await change_roles(primary, standby)
        deadline = time.monotonic() + 3.0
        while time.monotonic() < deadline:
            found = await asyncio.gather(*(recorded(client, 100 + n) for n in range(CONNECTIONS)))
            assert not any(found)
            await asyncio.sleep(0.05)
        address.folder = standby.folder
        switched = time.monotonic()

        async def records() -> bool:
            return await recorded(client, 200)

        await eventually(records)
        assert time.monotonic() - switched < 10.0

        async def trained() -> Any:
            try:
                return await train(client, request_id="after")
            except grpc.aio.AioRpcError as failure:
                # A session with the old primary may end under a call, which is to be made again.
                assert failure.code() == grpc.StatusCode.UNAVAILABLE
                return None

        run = await eventually(trained)
        assert run.interactions_trained == 2 * CONNECTIONS + 1


async def test_connections_that_turn_read_only_are_not_kept(database_url: str) -> None:
    pool = await create_pool(database_url, 3)
    held = [await pool.acquire() for _ in range(3)]
    old = {connection.get_server_pid() for connection in held}
    for connection in held:
        await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await held[0].execute("DELETE FROM shadows")
    for connection in held:
        await pool.release(connection)
    held = [await pool.acquire() for _ in range(3)]
    assert not old & {connection.get_server_pid() for connection in held}
    for connection in held:
        await connection.execute("DELETE FROM shadows")
        await pool.release(connection)
    await pool.close()


async def test_a_connection_is_given_back_without_a_word_to_nobody(database_url: str) -> None:
    unretrieved: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))
    pool = await create_pool(database_url, 1)
    backends: list[int] = []

    async def hang() -> None:
        async with pool.acquire(timeout=0.5) as connection:
            backends.append(connection.get_server_pid())
            os.kill(backends[0], signal.SIGSTOP)
            await connection.execute("SELECT 1")

    hanging = asyncio.create_task(hang())
    try:
        for wait in (0.2, 0.2):
            await asyncio.sleep(wait)
            hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await asyncio.sleep(1.0)
    finally:
        os.kill(backends[0], signal.SIGCONT)
    gc.collect()
    assert await pool.fetchval("SELECT 1") == 1
    assert unretrieved == []
    await pool.close()


async def test_a_database_that_takes_no_writes_is_no_database(
    database_url: str, db: asyncpg.Connection
) -> None:
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError, match="standby, or read-only"):
        await create_pool(database_url, 3)
