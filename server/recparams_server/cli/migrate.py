"""`recparams migrate`: the schema brought up to date, as the migrations Job does."""

import asyncio

import asyncpg
import click

from recparams_server.cli.connection import Exit
from recparams_server.cli.output import give_up
from recparams_server.observability.logs import describe
from recparams_server.settings.database_url import parse_database_url
from recparams_server.store import migration
from recparams_server.store.errors import STORE_ERRORS, UnusableDatabaseError
from recparams_server.store.sessions import check_sessions


@click.command()
@click.option(
    "--database-url",
    envvar=["RECPARAMS_DATABASE_URL", "DATABASE_URL"],
    required=True,
    help="As of `recparams serve`. [RECPARAMS_DATABASE_URL or DATABASE_URL]",
)
def migrate(database_url: str) -> None:
    """Bring the schema of a database up to date.

    A server does so at its start as well, so this is not needed; run before a new version is
    deployed, it shows whether the migration succeeds while the old version goes on serving.

    \b
    recparams migrate --database-url postgresql://user:password@host:port/name

    \b
    Exit codes:
      0  the schema is up to date
      1  the migration failed; nothing was changed
      2  the URL cannot be used
      4  the database cannot be reached
    """
    try:
        url = parse_database_url(database_url).url
    except ValueError as failure:
        raise click.UsageError(f"--database-url {failure}") from None
    try:
        asyncio.run(_migrate(url))
    except STORE_ERRORS as failure:
        give_up(failure, Exit.UNREACHABLE)
    except (migration.NewerSchemaError, UnusableDatabaseError) as failure:
        give_up(failure, Exit.FAILED)
    except (asyncpg.PostgresError, migration.MigrationError) as failure:
        click.echo(f"recparams: {describe(failure)}", err=True)
        raise SystemExit(Exit.FAILED) from None
    click.echo("the schema is up to date")


async def _migrate(url: str) -> None:
    await check_sessions(url)
    await migration.migrate(url)
