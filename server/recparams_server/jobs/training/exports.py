"""Exports: interactions as Parquet files, which spare the database where Ray has many workers.

`recparams interactions export` writes what the next run would read: a file for each range of
personality cells, with everything of everybody who has an interaction in it, and last a manifest. A
run can then be told to read the files. It is refused where the database has moved on in a way that
would make it wrong: another version trained, people forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
from pydantic import TypeAdapter, ValidationError

from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import StateSpace
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training.reading import Assembler, Reading, window_start_of
from recparams_server.jobs.training.shards import (
    Counts,
    Part,
    Shard,
    interactions_by_cell,
    part_of,
    shard_condition,
    split_cells,
)
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.columns import INTERACTIONS, Rows, copy_rows
from recparams_server.store.database import Connection, database_url

MANIFEST = "manifest.json"
FORMAT: Final = 1
ROW_GROUP = 1 << 18


class ExportError(ValueError):
    """An export that cannot be trained on. The message says why."""


@dataclass(frozen=True)
class Manifest:
    """Contents of an export, stored beside its files as JSON.

    Attributes:
        through, window_start, rebuild: what was read, as a run reads it.
        space: the state space that cells are of.
        base_version: the version that an incremental run would have gone on from.
        interactions: how many, each counted once.
        shards: one for each file, in order.
        format: of the files and of this.
    """

    through: int
    window_start: datetime
    rebuild: bool
    space: StateSpace
    base_version: int | None
    interactions: int
    shards: tuple[Shard, ...]
    format: Literal[1]


_MANIFEST = TypeAdapter(Manifest)


def load(folder: Path) -> Manifest:
    """Returns the manifest of a whole export. Raises ExportError."""
    try:
        return _MANIFEST.validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as failure:
        wrong = "; ".join(
            ": ".join((*map(str, one["loc"]), one["msg"])) for one in failure.errors()
        )
        raise ExportError(f"{folder} holds no whole export: {wrong}") from None
    except OSError as failure:
        raise ExportError(f"{folder} holds no whole export: {failure}") from None


def file_of(folder: Path, position: int) -> Path:
    """Returns the file of a shard."""
    return folder / f"part-{position:05d}.parquet"


def _make(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        raise ExportError(f"{folder} has an export already")
    folder.mkdir(parents=True, exist_ok=True)


async def check(work: Connection, settings: Settings, manifest: Manifest, rebuild: bool) -> None:
    """Raises ExportError where a run could not read an export as it would read the database."""
    if manifest.space != settings.space():
        raise ExportError("the export is of another state space")
    if manifest.rebuild != rebuild:
        wanted, is_ = ("rebuild", "incremental") if rebuild else ("incremental", "rebuild")
        raise ExportError(f"the export is for an {is_} run, not for a {wanted} one")
    if manifest.base_version != await training.base_version(work):
        raise ExportError("another version was trained since the export: export again")
    now = await _count(work, rebuild, manifest.through, manifest.window_start)
    if now != manifest.interactions:
        raise ExportError(
            f"{manifest.interactions - now} of the exported interactions are not in the database "
            "any more: export again"
        )


async def export(
    settings: Settings,
    folder: Path,
    *,
    days_back: int | None,
    rebuild: bool,
    shards: int,
    on_file: Callable[[int, int], None],
) -> Manifest:
    """Writes an export into a folder that has none yet.

    Args:
        settings: where the database is, and the state space.
        folder: made if it is missing.
        days_back: length of the window in days, as of a run.
        rebuild: export what was trained before as well.
        shards: largest number of files.
        on_file: called after each with its number, from 1, and how many there will be.

    Raises:
        ExportError: there is an export already.
    """
    _make(folder)
    space = settings.space()
    work = await asyncpg.connect(database_url(settings))
    try:
        through = await training.snapshot(work)
        await training.fill_in_profiles(work)
        run = _any_run(rebuild, days_back)
        window_start = window_start_of(settings, run)
        reading = Reading(run, window_start, through, traits=True)
        await training.export_snapshot(work)
        dealt = split_cells(await interactions_by_cell(work, space, reading), space.n_cells, shards)
        for position, shard in enumerate(dealt):
            await _write(work, space, reading, shard, file_of(folder, position))
            on_file(position + 1, len(dealt))
        manifest = Manifest(
            through=through,
            window_start=window_start,
            rebuild=rebuild,
            space=space,
            base_version=await training.base_version(work),
            interactions=await _count(work, rebuild, through, window_start),
            shards=tuple(dealt),
            format=FORMAT,
        )
    finally:
        work.terminate()
    # Last, and at once: a folder with a manifest is whole.
    partial = folder / f"{MANIFEST}.partial"
    partial.write_bytes(_MANIFEST.dump_json(manifest, indent=1))
    partial.rename(folder / MANIFEST)
    return manifest


def read_file(
    settings: Settings, reading: Reading, shard: Shard, file: Path
) -> tuple[Part, Counts]:
    """Reads a shard from a file; returns what is due in it, and counts of its people."""
    import pyarrow.parquet as pq

    assembler = Assembler(settings, reading.request.objectives, traits=True, on_rows=lambda _: None)
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(ROW_GROUP):
            assembler.add(_Batch(batch))  # type: ignore[arg-type]
    return part_of(settings, reading, shard, assembler.columns())


class _Batch:
    """Columns of a piece of a file, by name, with the fields of rows of COPY."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getitem__(self, name: str) -> Any:
        return self._batch.column(name).to_numpy(zero_copy_only=False)


async def _write(
    work: Connection, space: StateSpace, reading: Reading, shard: Shard, file: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {name: INTERACTIONS.row[name].newbyteorder("=") for name in INTERACTIONS.names}
    schema = pa.schema([(name, pa.from_numpy_dtype(kind)) for name, kind in kinds.items()])
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[Any] = []

        def write() -> None:
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting.clear()

        async def add(rows: Rows) -> None:
            columns = [rows[name].astype(kind) for name, kind in kinds.items()]
            waiting.append(pa.record_batch(columns, schema=schema))
            if sum(map(len, waiting)) >= ROW_GROUP:
                write()

        condition = shard_condition(space, reading, shard)
        query = f"{training.query(reading.request.rebuild)} AND {condition}"
        await copy_rows(work, query, reading.through, reading.window_start, on_rows=add)
        write()


async def _count(work: Connection, rebuild: bool, through: int, window_start: datetime) -> int:
    query = training.query(rebuild, "count(*)")
    return int(await work.fetchval(query, through, window_start))


def _any_run(rebuild: bool, days_back: int | None) -> RunRequest:
    """Returns a request that is complete as far as reading goes."""
    return RunRequest(
        rebuild=rebuild,
        days_back=days_back,
        min_interactions_per_user=1,
        hyperparameters=Hyperparameters(),
        as_of=datetime.now(UTC),
        activate=False,
    )
