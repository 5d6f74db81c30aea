"""Migrations of the schema. Apart from `server.store.database`, since workers need none of them."""

import asyncio
from pathlib import Path

import asyncpg
import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from server.settings import Settings
from server.store.database import Pool, create_pool, database_url
from server.store.errors import STORE_ERRORS

log = structlog.get_logger()
MIGRATIONS = Path(__file__).parent / "migrations"


class NewerSchemaError(Exception):
    """A schema of a revision that this release does not know."""


async def migrate(url: str, revision: str = "head") -> None:
    """Brings the schema up to a revision. Replicas that start together take turns.

    Raises:
        NewerSchemaError: a newer release has migrated it further; nothing is changed.
    """
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
    except CommandError as failure:
        raise NewerSchemaError(
            f"the database's schema is of a newer release than this one ({failure}): "
            "run that release or a newer one"
        ) from None
    finally:
        await engine.dispose()


async def connect_when_ready(settings: Settings) -> tuple[str, Pool]:
    """Returns URL and pool of a migrated database, however long it takes to come up."""
    delay = 0.5
    while True:
        try:
            url = await asyncio.to_thread(database_url, settings)
            await migrate(url)
            return url, await create_pool(url, settings.database_pool_size)
        except (*STORE_ERRORS, asyncpg.PostgresError, DBAPIError) as failure:
            log.warning("waiting for the database", error=repr(failure), retry_in=delay)
        except NewerSchemaError as failure:
            log.error("not serving", error=str(failure), retry_in=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 10.0)
