"""Exports for analysis: recorded interactions as one file with names instead of codes.

The columns are those of recparams_rl/log_columns.py. Rows come by a cursor and go to the file as
they come: memory does not depend on how many there are. Nothing is written to the database.
"""

import csv
import gzip
import io
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

import asyncpg
import numpy as np

from recparams_rl.action import ACTIONS, DIMENSIONS
from recparams_rl.log_columns import COLUMNS, Column
from recparams_rl.log_files import arrow_schema, format_of
from recparams_rl.objectives import weighted_reward
from recparams_rl.policy import SOURCES
from recparams_rl.reward import REACTIONS, reaction_flags, rewards
from recparams_server.contract.vocabulary import (
    ARM_NAMES,
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    SOURCE_NUMBERS,
    TIME_OF_DAY_NAMES,
)
from recparams_server.settings import Settings
from recparams_server.store import analysis
from recparams_server.store.database import database_url
from recparams_server.store.training import EVER

_SOURCE_NAMES = dict(zip(SOURCE_NUMBERS, SOURCES, strict=True))
_PSEUDONYM_BYTES = 10

Columns = dict[str, list[Any]]
Write = Callable[[Columns], None]


class NothingToExportError(Exception):
    """No interactions to export. The message says of when."""


class FileError(Exception):
    """A file that cannot be written. The message says why."""


async def export(
    settings: Settings,
    file: Path,
    *,
    days_back: int | None,
    user_ids: bool,
    on_rows: Callable[[int, int], None],
) -> int:
    """Writes recorded interactions to a file, whole or not at all, and returns how many.

    Args:
        settings: where the database is, and the rewards.
        file: its name ends in one of `recparams_rl.log_files.FORMATS`; what is there is replaced.
        days_back: length of the window in days, up to now; None for all that is recorded.
        user_ids: write user ids as they are. Otherwise they are hashed with a key that is drawn for
            this file and kept nowhere: the same person is the same within it, and only there.
        on_rows: called with the number of interactions written so far and that of all.

    Raises:
        NothingToExportError: there are no interactions, and no file was written.
        FileError: the file cannot be written.
    """
    name_of = str if user_ids else _pseudonyms()
    since = EVER if days_back is None else datetime.now(UTC) - timedelta(days=days_back)
    connection = await asyncpg.connect(database_url(settings))
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            total = await analysis.count(connection, since)
            if not total:
                when = "" if days_back is None else f" in the last {days_back} days"
                raise NothingToExportError(f"no interactions were recorded{when}")
            written = 0
            with _whole(file) as write:
                async for rows in analysis.read(connection, since):
                    write(_columns(settings, name_of, rows))
                    written += len(rows)
                    on_rows(written, total)
    except asyncpg.UndefinedTableError:
        raise NothingToExportError("the database has no tables of recparams") from None
    finally:
        connection.terminate()
    return written


def _pseudonyms() -> Callable[[str], str]:
    """Returns a function from user ids to hashes, 20 hexadecimal digits, keyed at random."""
    key = secrets.token_bytes(blake2b.MAX_KEY_SIZE)

    def pseudonym(user_id: str) -> str:
        return blake2b(user_id.encode(), key=key, digest_size=_PSEUDONYM_BYTES).hexdigest()

    return pseudonym


def _columns(
    settings: Settings, name_of: Callable[[str], str], rows: list[asyncpg.Record]
) -> Columns:
    """Returns rows of `analysis.read` as columns by name, in Python's types; None is missing."""
    id_, time, user, *others = (list(column) for column in zip(*rows, strict=True))
    scores, others = others[:5], others[5:]
    content, mood, daytime, action, mask, completion, change, propensity, arm, version, source = (
        others
    )
    masks = np.array(mask, dtype=np.int64)
    engagement = rewards(
        settings.reward_weights(),
        masks,
        np.array(completion, dtype=np.float32),
        np.array(change, dtype=np.float32),
    )
    reward = weighted_reward(settings.objectives(), engagement, np.array(action, dtype=np.uint8))
    values = (
        id_,
        time,
        [name_of(one) for one in user],
        *scores,
        [CONTENT_TYPE_NAMES[one] for one in content],
        [MOOD_NAMES[one] for one in mood],
        [TIME_OF_DAY_NAMES[one] for one in daytime],
        *([getattr(ACTIONS[one], dimension) for one in action] for dimension in DIMENSIONS),
        *(reaction_flags(masks, name).tolist() for name in REACTIONS),
        completion,
        change,
        engagement.tolist(),
        reward.tolist(),
        propensity,
        [ARM_NAMES.get(one) for one in arm],
        version,
        [_SOURCE_NAMES.get(one) for one in source],
    )
    return {column.name: of for column, of in zip(COLUMNS, values, strict=True)}


@contextmanager
def _file_errors(file: Path) -> Iterator[None]:
    """Has what fails with the file told from what fails with the database."""
    try:
        yield
    except OSError as failure:
        raise FileError(f"{file}: {failure.strerror or failure}") from None


@contextmanager
def _whole(file: Path) -> Iterator[Write]:
    """Yields what writes columns beside the file, which is replaced at the end."""
    part = file.with_name(f"{file.name}.part")
    kind = format_of(file)
    with ExitStack() as opened:
        opened.callback(part.unlink, missing_ok=True)
        writing = ExitStack()
        # What was left unwritten by a failure is of no interest.
        opened.callback(_close_quietly, writing)
        with _file_errors(file):
            stream = writing.enter_context(part.open("wb"))
            if kind == ".parquet":
                into = writing.enter_context(_parquet(stream))
            else:
                into = writing.enter_context(_csv(stream, compressed=kind == ".csv.gz"))

        def write(columns: Columns) -> None:
            with _file_errors(file):
                into(columns)

        yield write
        with _file_errors(file):
            writing.close()
            part.replace(file)


def _close_quietly(writing: ExitStack) -> None:
    with suppress(OSError):
        writing.close()


@contextmanager
def _csv(file: IO[bytes], *, compressed: bool) -> Iterator[Write]:
    packed = gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) if compressed else file
    with io.TextIOWrapper(packed, encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([column.name for column in COLUMNS])

        def write(columns: Columns) -> None:
            texts = (_texts(column, columns[column.name]) for column in COLUMNS)
            writer.writerows(zip(*texts, strict=True))

        yield write


def _texts(column: Column, values: list[Any]) -> list[str]:
    """Returns the values of a column as texts that `recparams_rl.log_columns.parse` reads."""
    if column.kind == "number":
        # The shortest text that reads as the same float32.
        texts = np.array(values, dtype=np.float32).astype(np.str_)
        found: list[str] = np.where(texts == "nan", "", texts).tolist()
        return found
    if column.kind == "time":
        return [f"{one.replace(tzinfo=None).isoformat()}Z" for one in values]
    if column.kind == "truth":
        return ["true" if one else "false" for one in values]
    return ["" if one is None else str(one) for one in values]


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def write(columns: Columns) -> None:
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=schema))

        yield write
