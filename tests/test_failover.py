"""The primary changes behind one address, and connections that reach a standby are not kept."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from server.store.database import create_pool
from tests.faults import SMALL, Address, OwnPostgres, Standby, eventually
from tests.support import Client, connect, logged, record, request, train, wait_serving

DATABASE = "recparams"
CONNECTIONS = 8
"""The default size of the pool."""


@pytest.fixture
def primary() -> Iterator[OwnPostgres]:
    with tempfile.TemporaryDirectory(prefix="recparams-") as folder:
        postgres = OwnPostgres(Path(folder) / "pg")
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
    folder = Path(tempfile.mkdtemp(prefix="recparams-"))
    await asyncio.to_thread(folder.chmod, 0o755)
    copied = await asyncio.to_thread(primary.copy, folder / "pg")
    await asyncio.to_thread(copied.start)
    yield copied
    await asyncio.to_thread(copied.stop)
    shutil.rmtree(folder)


async def recorded(client: Client, number: int) -> bool:
    try:
        await record(client, logged(f"i{number}", f"user-{number % 5}"))
    except grpc.aio.AioRpcError as failure:
        assert failure.code() == grpc.StatusCode.UNAVAILABLE, failure
        return False
    return True


async def test_recording_goes_on_after_a_failover(
    primary: OwnPostgres, address: Address, client: Client, standby: Standby
) -> None:
    kept = [n for n in range(20) if await recorded(client, n)]
    assert len(kept) == 20
    # The clients of the old primary come back to it while it is a standby, and stay there.
    await asyncio.to_thread(primary.stop, "fast")
    await asyncio.to_thread(standby.promote)
    primary.follow(standby)
    await asyncio.to_thread(primary.start)
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


async def test_a_database_that_takes_no_writes_is_no_database(
    database_url: str, db: asyncpg.Connection
) -> None:
    name = await db.fetchval("SELECT current_database()")
    await db.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError, match="standby, or read-only"):
        await create_pool(database_url, 3)
