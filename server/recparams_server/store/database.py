"""Connections to Postgres: its URL and the pool."""

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from recparams_server.settings import Settings
from recparams_server.store.embedded import start_postgres
from recparams_server.store.errors import DATABASE_ERRORS

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:  # asyncpg's classes take no type arguments at run time
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection


class _QuietPool(Pool):
    """A pool whose connections are given back without a word when nobody waits for that any more.

    asyncpg goes on giving back a connection whose caller is cancelled twice, as by a time limit
    and by the end of the server, and nobody then retrieves the error if that takes too long.
    """

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Returns the connection to the pool within `timeout` seconds, or closes it."""
        release = asyncio.create_task(super().release(connection, timeout=timeout))
        release.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(release)


def database_url(settings: Settings) -> str:
    """Returns the configured URL, or that of the embedded Postgres, which it starts if need be.

    It is in the form that the driver takes. The embedded server outlives this process, so that
    replicas and restarts find it again.
    """
    configured = settings.checked_database_url()
    if configured is not None:
        return configured.url
    folder = (settings.data_dir / "postgres").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return str(start_postgres(folder).get_uri())


async def create_pool(url: str, size: int) -> Pool:
    """Returns a pool of up to `size` connections, once the database has answered.

    A connection to a database that takes no writes is not kept: one of a standby would go on
    answering reads, and come back into use, long after another server has become the primary.

    Raises one of `STORE_ERRORS` if the database does not answer, or takes no writes.
    """

    async def admit(connection: Connection) -> None:
        try:
            await check_writable(connection)
        except BaseException:
            # The pool closes it in good order, which behind a pooler waits for the database.
            connection.terminate()
            raise
        connection.add_query_logger(expire_read_only)

    async def expire_read_only(query: asyncpg.connection.LoggedQuery) -> None:
        if isinstance(query.exception, asyncpg.ReadOnlySQLTransactionError):
            await pool.expire_connections()

    pool = _QuietPool(
        url,
        min_size=1,
        max_size=size,
        max_queries=50_000,
        max_inactive_connection_lifetime=60,
        init=admit,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        timeout=5,
        command_timeout=30,
        server_settings={"application_name": f"recparams-{os.getpid()}"},
    )
    return await pool


async def check_writable(connection: Connection) -> None:
    """Ends the session and raises ReadOnlySQLTransactionError if the database takes no writes.

    It is asked, since what the driver was told when it connected may be a pooler's memory. Closing
    the connection alone would leave a session with a standby to a pooler, which deals it out again.
    """
    if await connection.fetchval("SHOW transaction_read_only") == "on":
        with contextlib.suppress(*DATABASE_ERRORS):
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        raise asyncpg.ReadOnlySQLTransactionError("the database is a standby, or read-only")
