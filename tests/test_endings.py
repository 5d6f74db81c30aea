"""What ends at a bad moment still ends: runs are marked, and servers stop."""

import asyncio
import signal
from typing import Any

import asyncpg

from recparams.v1 import training_pb2 as tpb
from recparams_server.store.locks import TRAINER_LOCK, WATCH_LOCK
from tests.faults import (
    SMALL,
    OwnPostgres,
    eventually,
    get_run,
    holding,
    trainer_is_blocked,
    trigger,
)
from tests.support import ServerProcess, connect, logged, record, train, wait_serving


async def test_a_trainer_that_dies_with_the_database_before_its_run_began(
    own_postgres: OwnPostgres, start_server: Any
) -> None:
    """Its run is pending: only its server knows at once that nobody will ever carry it out."""
    url = own_postgres.uri("postgres")
    server = start_server(database_url=url, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, logged("i", "ada"))
        db = await asyncpg.connect(url)
        async with holding(url, f"SELECT pg_advisory_lock({TRAINER_LOCK})"):
            run_id = await trigger(client)
            await eventually(lambda: trainer_is_blocked(db, str(TRAINER_LOCK)))
            await asyncio.to_thread(own_postgres.stop)

            async def could_not_mark() -> bool:
                events = [line.get("event") for line in server.events()]
                return "trainer ended, run not marked" in events

            await eventually(could_not_mark)
        await asyncio.to_thread(own_postgres.start)

        async def is_marked() -> bool:
            return (await get_run(client, run_id)).status == tpb.TRAINING_RUN_STATUS_FAILED

        await eventually(is_marked)
        assert (await train(client)).interactions_trained == 1


async def test_a_server_stops_after_the_connection_that_watches_was_lost(
    db: asyncpg.Connection, start_server: Any
) -> None:
    server = start_server(**SMALL)
    leader = """
        SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND objid = $1
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    """
    pid = await eventually(lambda: db.fetchval(leader, WATCH_LOCK))
    await db.execute("SELECT pg_terminate_backend($1)", pid)

    async def is_gone() -> bool:
        return await db.fetchval(leader, WATCH_LOCK) is None

    await eventually(is_gone)
    await assert_stops(server)


async def test_a_server_stops_while_its_database_hangs(
    own_postgres: OwnPostgres, start_server: Any
) -> None:
    server = start_server(database_url=own_postgres.uri("postgres"), **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, logged("i", "ada"))
    own_postgres.freeze()
    try:
        await assert_stops(server)
    finally:
        own_postgres.thaw()


async def assert_stops(server: ServerProcess) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(server.process.wait, 10) == 0
