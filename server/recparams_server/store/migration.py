"""Migrations of the schema; Alembic is imported only if there is something to do."""

import asyncio
import contextlib
from pathlib import Path

import asyncpg
import structlog

from recparams_server.settings import Settings
from recparams_server.store.database import Connection, Pool, create_pool, database_url
from recparams_server.store.errors import DATABASE_ERRORS
from recparams_server.store.sessions import check_sessions

log = structlog.get_logger()
MIGRATIONS = Path(__file__).parent / "migrations"
HEAD = max(file.name.partition("_")[0] for file in MIGRATIONS.glob("versions/[0-9]*.py"))
"""Revision of this release."""


class NewerSchemaError(Exception):
    """A schema of a revision that this release does not know."""


class MigrationError(Exception):
    """The database refused a migration; nothing was changed."""


WAITED_FOR: tuple[type[Exception], ...] = (*DATABASE_ERRORS, MigrationError)


async def migrate(url: str, revision: str = HEAD) -> None:
    """Brings the schema up to a revision. Replicas that start together take turns.

    Raises:
        NewerSchemaError: a newer release has migrated it further; nothing is changed.
        MigrationError: the database refused; nothing is changed.
    """
    if await _revision(url) != revision:
        await _upgrade(url, revision)


async def _revision(url: str) -> str | None:
    connection = await asyncpg.connect(url)
    try:
        return await revision_of(connection)
    finally:
        await connection.close()


async def revision_of(connection: Connection) -> str | None:
    """Returns the revision of the schema, None of an empty database."""
    with contextlib.suppress(asyncpg.UndefinedTableError):
        found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return found
    return None


async def _upgrade(url: str, revision: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

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
    except DBAPIError as failure:
        refused = failure.orig and failure.orig.__cause__
        raise MigrationError("the database refused a migration") from refused
    finally:
        await engine.dispose()


async def connect_when_ready(settings: Settings) -> tuple[str, Pool]:
    """Returns URL and pool of a migrated database, however long it takes to come up.

    Raises UnusableDatabaseError if waiting is in vain.
    """
    configured = settings.checked_database_url()
    for name in () if configured is None else configured.unused:
        log.warning("this parameter of the database URL is not used", name=name)
    delay = 0.5
    while True:
        try:
            url = await asyncio.to_thread(database_url, settings)
            await check_sessions(url)
            await migrate(url)
            return url, await create_pool(url, settings.database_pool_size)
        except WAITED_FOR as failure:
            log.warning("waiting for the database", error=failure, retry_in=delay)
        except NewerSchemaError as failure:
            log.error("not serving", error=str(failure), retry_in=delay)
        await asyncio.sleep(delay)
        delay = min(delay * 2, 10.0)
