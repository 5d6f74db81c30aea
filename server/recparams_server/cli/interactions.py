"""`recparams interactions`: recorded interactions as files."""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recparams_server.cli.connection import Exit
from recparams_server.cli.given_settings import read_settings
from recparams_server.cli.output import give_up
from recparams_server.settings import Settings
from recparams_server.store.errors import STORE_ERRORS


@click.group()
def interactions() -> None:
    """Write recorded interactions to files."""


@interactions.command()
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["training", "analysis"]),
    default="training",
    show_default=True,
    help="What will read it: training on Ray, or whoever analyses it.",
)
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    required=True,
    help="For training a folder that has no export yet; for analysis a file, .csv, .csv.gz or "
    ".parquet, which is replaced.",
)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    help="Length of the window. [default: for training as of train, for analysis all]",
)
@click.option(
    "--mode",
    type=click.Choice(["incremental", "rebuild"]),
    help="For training: what a run of this mode would read. [default: incremental]",
)
@click.option(
    "--files", type=click.IntRange(1, 3125), help="For training: at most so many. [default: 16]"
)
@click.option(
    "--user-ids",
    is_flag=True,
    help="For analysis: write user ids as they are, instead of hashes that are of this file alone.",
)
@click.option(
    "--database-url",
    help="As of `recparams serve`. [RECPARAMS_DATABASE_URL or DATABASE_URL]",
)
def export(
    purpose: str,
    into: Path,
    days: int | None,
    mode: str | None,
    files: int | None,
    user_ids: bool,
    database_url: str | None,
) -> None:
    """Write recorded interactions, for training elsewhere or for analysis.

    It reads the database itself, without a server: run it near to it, with the settings of the
    servers (vocabularies, bins, rewards). Personality scores and reactions are in the files: keep
    them as you keep the database, and delete them when they are done with.

    For training, what the next run would read goes into Parquet files in a folder, for Ray with
    many workers, which then do not all lean on the database. It needs the extra ray.

    For analysis, everything recorded goes into one file, a row an interaction, with names instead
    of codes, times in UTC, reward, propensity, arm, version and source; recparams_rl.load_log reads
    it. CSV needs nothing else, Parquet the extra parquet.

    \b
    recparams interactions export --into /shared/week-12 --files 64
    recparams train --wait --engine ray --export /shared/week-12
    recparams interactions export --for analysis --into interactions.csv.gz --days 28

    \b
    Exit codes:
      0  exported
      1  failed, or there is nothing to export; without a manifest.json a folder is no export
      2  bad input
      4  the database cannot be reached
    """
    settings = read_settings(database_url=database_url or None)
    try:
        if purpose == "analysis":
            if mode is not None or files is not None:
                raise click.UsageError("--mode and --files are for training.")
            _export_for_analysis(settings, into, days, user_ids)
        else:
            if user_ids:
                raise click.UsageError("--user-ids is for analysis.")
            _export_for_training(settings, into, days, mode == "rebuild", files or 16)
    except STORE_ERRORS as failure:
        give_up(failure, Exit.UNREACHABLE)


def _export_for_training(
    settings: Settings, folder: Path, days: int | None, rebuild: bool, files: int
) -> None:
    if find_spec("pyarrow") is None:
        raise click.ClickException("pyarrow is not installed: pip install 'recparams[ray]'")
    if folder.is_file():
        raise click.UsageError(f"{folder} is a file; an export for training is a folder.")
    # What takes long to import waits until it is wanted.
    from recparams_server.jobs.training import exports

    console = Console(stderr=True)

    def on_file(number: int, of: int) -> None:
        console.print(f"file {number} of {of}", highlight=False)

    try:
        written = asyncio.run(
            exports.export(
                settings, folder, days_back=days, rebuild=rebuild, shards=files, on_file=on_file
            )
        )
    except exports.ExportError as failure:
        raise click.UsageError(str(failure)) from None
    click.echo(f"{written.interactions:,} interactions in {len(written.shards)} files: {folder}")


def _export_for_analysis(settings: Settings, file: Path, days: int | None, user_ids: bool) -> None:
    from recparams_rl.log_files import FORMATS, NEEDS_PYARROW, format_of
    from recparams_server.jobs import analysis

    if file.is_dir() or format_of(file) is None:
        raise click.UsageError(f"{file} must be a file whose name ends in {', '.join(FORMATS)}.")
    if format_of(file) == ".parquet" and find_spec("pyarrow") is None:
        raise click.ClickException(NEEDS_PYARROW)
    if settings.database_url is None and not (settings.data_dir / "postgres").exists():
        _nothing_to_export(f"{settings.data_dir} has no database, and no --database-url is given")
    columns = TextColumn("interactions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    console = Console(stderr=True)
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)

            def on_rows(so_far: int, of: int) -> None:
                bar.update(task, completed=so_far, total=of)

            written = asyncio.run(
                analysis.export(settings, file, days_back=days, user_ids=user_ids, on_rows=on_rows)
            )
    except analysis.NothingToExportError as failure:
        _nothing_to_export(str(failure))
    except analysis.FileError as failure:
        give_up(failure, Exit.FAILED)
    click.echo(f"{written:,} interactions: {file}")


def _nothing_to_export(why: str) -> NoReturn:
    """Says why there is nothing to export, and exits with 1."""
    click.echo(f"recparams: nothing to export: {why}", err=True)
    raise SystemExit(Exit.FAILED)
