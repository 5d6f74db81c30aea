"""All checks of a service, in the order in which they can be understood."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from recparams_server.diagnosis import data, database, learning
from recparams_server.diagnosis.findings import Finding
from recparams_server.settings import Settings


async def examine(settings: Settings, url: str) -> AsyncIterator[Finding]:
    """Yields what the checks of a database find; what rests on a failed one is left out.

    Args:
        settings: those of the servers.
        url: of the database, as the driver takes it.

    Raises:
        one of `STORE_ERRORS` if the database does not answer, or asyncpg.PostgresError.
    """
    pooler = await database.check_pooler(url)
    yield pooler
    if pooler.level != "ok":
        return
    connection = await database.connect(url)
    try:
        yield await database.check_postgres(connection)
        yield await database.check_clock(connection)
        schema = await database.check_schema(connection)
        yield schema
        if schema.level != "ok":
            return
        now = datetime.now(UTC)
        yield await data.check_storage(connection, settings, now)
        for finding in await data.check_interactions(connection, now):
            yield finding
        yield await learning.check_training(connection)
        yield await learning.check_divergence(connection)
        for finding in await learning.check_versions(connection, settings):
            yield finding
        yield await learning.check_rollout(connection, settings)
        yield await learning.check_gain(connection)
    finally:
        await connection.close()
