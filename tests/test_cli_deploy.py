"""The commands that an image and its orchestrator run: health and migrate."""

import asyncio
from typing import Any

import asyncpg
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from recparams_server.app import App
from recparams_server.store.migration import migrate
from tests.support import START_SECONDS, Client, connect, wait_serving
from tests.test_cli import run


async def test_health_of_a_server(app: App, client: Client) -> None:
    served = await run("health", RECPARAMS_ADDRESS=f"127.0.0.1:{app.port}")
    assert (served.code, served.out, served.err) == (0, "SERVING\n", "")
    away = await run("health", "--address", "127.0.0.1:1")
    assert (away.code, away.out) == (1, "")
    assert away.err.startswith("recparams: 127.0.0.1:1: ")
    assert len(away.err.splitlines()) == 1


async def test_health_of_a_server_that_does_not_serve() -> None:
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()
    waits = await run("health", "--address", f"127.0.0.1:{port}")
    assert (waits.code, waits.out) == (1, "NOT_SERVING\n")
    await server.stop(0)


async def test_migrate(db: asyncpg.Connection, database_url: str) -> None:
    await db.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await migrate(database_url, "0001")
    # Neither an admin key nor any other setting is needed.
    outcome = await run("migrate", RECPARAMS_DATABASE_URL="", DATABASE_URL=database_url)
    assert (outcome.code, outcome.out) == (0, "the schema is up to date\n")
    assert await db.fetchval("SELECT version_num FROM alembic_version") > "0001"


async def test_migrations_that_fail(db: asyncpg.Connection, database_url: str) -> None:
    await db.execute("UPDATE alembic_version SET version_num = '0001'")
    failed = await run("migrate", RECPARAMS_DATABASE_URL=database_url)
    assert failed.code == 1
    assert failed.err.startswith("recparams: ")
    assert await db.fetchval("SELECT version_num FROM alembic_version") == "0001"
    away = await run("migrate", RECPARAMS_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nothing")
    assert away.code == 4
    assert (await run("migrate", RECPARAMS_DATABASE_URL="")).code == 2


async def test_a_schema_of_a_newer_release(
    db: asyncpg.Connection, database_url: str, start_server: Any
) -> None:
    head = await db.fetchval("SELECT version_num FROM alembic_version")
    await db.execute("UPDATE alembic_version SET version_num = '9999'")
    failed = await run("migrate", RECPARAMS_DATABASE_URL=database_url)
    assert failed.code == 1
    assert "is of a newer release than this one" in failed.err
    assert len(failed.err.splitlines()) == 1
    server = start_server(log_format="json")
    async with asyncio.timeout(START_SECONDS):
        while not any(event["event"] == "not serving" for event in server.events()):
            await asyncio.sleep(0.1)
    assert server.process.poll() is None
    outcome = await run("health", RECPARAMS_ADDRESS=server.target)
    assert (outcome.code, outcome.out) == (1, "NOT_SERVING\n")
    # As soon as the schema is one that it knows, it serves.
    await db.execute("UPDATE alembic_version SET version_num = $1", head)
    async with connect(server.target) as client:
        await wait_serving(client)
