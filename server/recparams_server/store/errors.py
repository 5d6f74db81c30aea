"""The errors of a database that cannot be used for the time being."""

import asyncpg

_PASSING_CLASSES = ("08", "28", "3D", "40", "53", "55", "57", "58")
"""SQLSTATE classes: connection, login, database, rollback, resources, state, operator, system."""
_PASSING_CODES = (
    "25006",  # read-only: a standby
    "25P03",  # idle for too long in a transaction
    "25P04",  # too long a transaction
    "42P01",  # no such table: every one comes with the schema, which is away during a restore
)


class UnusableDatabaseError(Exception):
    """A database that cannot be used as it is reached, however long one waits. It says why."""


def _is_passing(sqlstate: str) -> bool:
    return sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING_CODES


STORE_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    *(
        kind
        for kind in vars(asyncpg).values()
        if isinstance(kind, type)
        and issubclass(kind, asyncpg.PostgresError)
        and _is_passing(kind.sqlstate or "")
    ),
)
"""Raised by asyncpg for what passes by itself, or by what is done to the database.

Of the errors that Postgres reports these are the ones with a SQLSTATE of a passing kind
(https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""

DATABASE_ERRORS: tuple[type[Exception], ...] = (*STORE_ERRORS, asyncpg.PostgresError)
"""The same, and whatever else Postgres reports."""
