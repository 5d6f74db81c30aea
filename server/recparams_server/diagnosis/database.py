"""Checks of the database itself: reached, whole sessions, schema, clock."""

from datetime import UTC, datetime

import asyncpg

from recparams_server.diagnosis.findings import Finding
from recparams_server.store import diagnosis, migration
from recparams_server.store.database import Connection
from recparams_server.store.errors import UnusableDatabaseError
from recparams_server.store.sessions import SECONDS, check_sessions

OLDEST_POSTGRES = 140000
SKEW_SECONDS = 2.0
REFUSED_SKEW_SECONDS = 300.0
"""From which on interactions that are dated by callers are refused as of the future."""


async def check_pooler(url: str) -> Finding:
    """Finds a pooler that shares sessions. Raises `STORE_ERRORS` if nothing answers."""
    try:
        await check_sessions(url)
    except UnusableDatabaseError as failure:
        return Finding("pooler", "problem", str(failure), "pool_mode = session in pgbouncer.ini")
    return Finding("pooler", "ok", "every connection has a session to itself")


async def connect(url: str) -> Connection:
    """Returns a connection for the checks, which nothing can keep waiting for long."""
    return await asyncpg.connect(url, timeout=SECONDS, command_timeout=60.0)


async def check_postgres(connection: Connection) -> Finding:
    """Finds a Postgres that is too old, read-only, or out of connections."""
    found = await diagnosis.postgres(connection)
    said = (
        f"Postgres {found['name']} answers; {found['connections']} of "
        f"{found['most_connections']} connections are in use"
    )
    if found["version"] < OLDEST_POSTGRES:
        return Finding(
            "database", "problem", f"{said}; 14 is the oldest that is supported", "pg_upgrade"
        )
    if found["read_only"]:
        return Finding(
            "database",
            "problem",
            f"{said}; it takes no writes, as a standby does",
            "RECPARAMS_DATABASE_URL with all hosts and target_session_attrs=read-write",
        )
    if found["connections"] > 0.9 * found["most_connections"]:
        return Finding(
            "database",
            "warning",
            said,
            "recparams serve --database-pool-size 4, or a larger max_connections in Postgres",
        )
    return Finding("database", "ok", said)


async def check_schema(connection: Connection) -> Finding:
    """Finds a schema that is not this release's."""
    found, head = await migration.revision_of(connection), migration.HEAD
    if found == head:
        return Finding("migrations", "ok", f"the schema is this release's, revision {head}")
    if found is not None and found > head:
        return Finding(
            "migrations",
            "problem",
            f"the schema is revision {found}, of a newer release than this one, {head}",
            "run that release or a newer one",
        )
    has = "has no schema" if found is None else f"has the schema of revision {found}"
    said = f"the database {has}; this release needs {head}"
    return Finding("migrations", "problem", said, "recparams migrate")


async def check_clock(connection: Connection) -> Finding:
    """Finds a clock of the database that is not this machine's."""
    asked = datetime.now(UTC)
    told = await diagnosis.clock(connection)
    return skew(told, asked, datetime.now(UTC), "database")


def skew(told: datetime, asked: datetime, heard: datetime, what: str) -> Finding:
    """Returns what the clock of another machine says about it.

    Args:
        told: its time.
        asked, heard: this machine's time just before and after.
        what: the other one: server or database.
    """
    seconds = max((asked - told).total_seconds(), (told - heard).total_seconds(), 0.0)
    if seconds <= SKEW_SECONDS:
        return Finding(f"clock of {what}", "ok", "agrees with this machine's")
    refused = seconds > REFUSED_SKEW_SECONDS
    return Finding(
        f"clock of {what}",
        "problem" if refused else "warning",
        f"it and this machine's are {seconds:.0f} s apart"
        + ("; what callers date is refused as of the future" if refused else ""),
        "timedatectl set-ntp true, on the one that is wrong",
    )
