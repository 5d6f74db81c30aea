"""The check that every connection to the database has a session to itself."""

import asyncpg

from recparams_server.store.errors import UnusableDatabaseError

ROUNDS = 3
SECONDS = 5.0
_SHARED = (
    "the database is reached through a pooler that shares sessions among connections (transaction "
    "or statement mode), which LISTEN, advisory locks and prepared statements do not survive: set "
    "the pooler to session mode (PgBouncer: pool_mode = session), or connect to Postgres itself"
)


async def check_sessions(url: str) -> None:
    """Raises UnusableDatabaseError if a pooler shares sessions, or the driver refuses the URL.

    Two connections ask in turns which session they have. A pooler that gives a session back after
    each transaction, whether the last one used or the longest unused one comes next, gives both
    the same one or one of them several.

    Raises one of `STORE_ERRORS` if the database does not answer.
    """
    connections: list[asyncpg.Connection[asyncpg.Record]] = []
    sessions: tuple[set[int], set[int]] = (set(), set())
    try:
        for _ in sessions:
            connection = await asyncpg.connect(url, timeout=SECONDS, command_timeout=SECONDS)
            connections.append(connection)
        for _ in range(ROUNDS):
            for number in (0, 1, 0, 0):
                sessions[number].add(await connections[number].fetchval("SELECT pg_backend_pid()"))
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        # What one connection prepared another one's session has, or does not have.
        raise UnusableDatabaseError(_SHARED) from None
    except asyncpg.ClientConfigurationError as failure:
        raise UnusableDatabaseError(f"database_url: {failure}") from None
    finally:
        for connection in connections:
            connection.terminate()
    if len(sessions[0]) > 1 or len(sessions[1]) > 1 or sessions[0] & sessions[1]:
        raise UnusableDatabaseError(_SHARED)
