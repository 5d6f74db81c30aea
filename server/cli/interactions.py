"""`recparams interactions`: recorded interactions as files."""

import asyncio
from importlib.util import find_spec
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console

from server.cli.connection import Exit
from server.cli.output import give_up, refuse_settings
from server.settings import Settings
from server.store.errors import STORE_ERRORS


@click.group()
def interactions() -> None:
    """Write recorded interactions to files."""


@interactions.command()
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for the files; has no export yet.",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Length of the window, as of train.")
@click.option(
    "--mode",
    type=click.Choice(["incremental", "rebuild"]),
    default="incremental",
    show_default=True,
    help="What a run of this mode would read.",
)
@click.option(
    "--files", type=click.IntRange(1, 3125), default=16, show_default=True, help="At most so many."
)
@click.option(
    "--database-url",
    help="As of `recparams serve`. [RECPARAMS_DATABASE_URL or DATABASE_URL]",
)
def export(into: Path, days: int | None, mode: str, files: int, database_url: str | None) -> None:
    """Write what the next training run would read as Parquet files.

    For training on Ray with many workers, which then do not all lean on the database. It reads the
    database itself, so run it near to it, with the settings of the servers (bins and vocabularies).
    Personality scores and reactions are in the files: keep them as you keep the database, and
    delete them when they are trained.

    \b
    recparams interactions export --into /shared/week-12 --files 64
    recparams train --wait --engine ray --export /shared/week-12

    \b
    Exit codes:
      0  exported
      1  failed; without a manifest.json the folder is no export
      2  bad input
      4  the database cannot be reached
    """
    if find_spec("pyarrow") is None:
        raise click.ClickException("pyarrow is not installed: pip install 'recparams[ray]'")
    # What takes long to import waits until it is wanted.
    from server.jobs.training import exports

    console = Console(stderr=True)

    def on_file(number: int, of: int) -> None:
        console.print(f"file {number} of {of}", highlight=False)

    try:
        settings = Settings(database_url=database_url) if database_url else Settings()
        written = asyncio.run(
            exports.export(
                settings,
                into,
                days_back=days,
                rebuild=mode == "rebuild",
                shards=files,
                on_file=on_file,
            )
        )
    except ValidationError as failure:
        refuse_settings(failure)
    except exports.ExportError as failure:
        raise click.UsageError(str(failure)) from None
    except STORE_ERRORS as failure:
        give_up(failure, Exit.UNREACHABLE)
    click.echo(f"{written.interactions:,} interactions in {len(written.shards)} files: {into}")
