"""Reading of analysis files, the one place of rl/ that opens a file."""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import DIMENSIONS, N_LEVELS
from recparams_rl.interaction_log import InteractionLog
from recparams_rl.log_columns import (
    COLUMNS,
    UNKNOWN_NUMBER,
    CellError,
    Column,
    LogFileError,
    check,
    parse,
)
from recparams_rl.reward import REACTIONS
from recparams_rl.state import TRAITS

FORMATS = (".csv", ".csv.gz", ".parquet")
"""Ends of the names of analysis files."""

NEEDS_PYARROW = "Parquet needs pyarrow: pip install 'recparams[parquet]' (CSV needs nothing)"
_ROWS = 1 << 14

Block = dict[str, NDArray[Any]]


def load_log(path: str | Path) -> InteractionLog:
    """Reads a file that `recparams interactions export --for analysis` wrote.

    Columns may be in any order, and further ones are passed over.

    Args:
        path: ends in .csv, .csv.gz or .parquet; the latter needs pyarrow.

    Raises:
        LogFileError: the file is no log: names the line (of Parquet: the row) and the column.
        ModuleNotFoundError: pyarrow is needed and missing.
        OSError: the file cannot be read.
    """
    file = Path(path)
    kind = format_of(file)
    if kind is None:
        raise LogFileError(f"{file}: its name must end in {', '.join(FORMATS)}")
    blocks = _parquet_blocks(file) if kind == ".parquet" else _csv_blocks(file)
    codes: dict[str, int] = {}
    pieces: dict[str, list[NDArray[Any]]] = {}
    for block in blocks:
        names = block.pop("user").tolist()
        block["user"] = np.array([codes.setdefault(name, len(codes)) for name in names], np.int64)
        for name, values in _combined(block).items():
            pieces.setdefault(name, []).append(values)
    columns = {name: np.concatenate(of) for name, of in pieces.items()}
    _check_ids(file, columns["id"], columns.pop("line"))
    return InteractionLog(user_names=np.array(list(codes), dtype=np.str_), **columns)


def format_of(file: Path) -> str | None:
    """Returns which of `FORMATS` a file's name ends in, or None."""
    return next((end for end in FORMATS if file.name.lower().endswith(end)), None)


def arrow_schema() -> Any:
    """Returns the schema of Parquet files. Raises ModuleNotFoundError without pyarrow."""
    try:
        import pyarrow as pa
    except ModuleNotFoundError as failure:
        raise ModuleNotFoundError(NEEDS_PYARROW, name=failure.name) from None
    types = {
        "integer": pa.int64(),
        "number": pa.float32(),
        "time": pa.timestamp("us", tz="UTC"),
        "truth": pa.bool_(),
        "word": pa.string(),
        "text": pa.string(),
    }
    return pa.schema([pa.field(c.name, types[c.kind], nullable=c.optional) for c in COLUMNS])


def _combined(block: Block) -> Block:
    """Returns a block with its actions, reactions and traits in one column each."""
    levels = [
        np.array([names.index(one) for one in block.pop(dimension).tolist()], dtype=np.intp)
        for dimension, names in DIMENSIONS.items()
    ]
    flags = [block.pop(name).astype(np.int64) << bit for bit, name in enumerate(REACTIONS)]
    traits = np.stack([block.pop(name) for name in TRAITS], axis=1)
    action = np.ravel_multi_index(levels, N_LEVELS).astype(np.uint8)
    return {**block, "traits": traits, "action": action, "reactions": np.sum(flags, axis=0)}


def _check_ids(file: Path, ids: NDArray[np.int64], lines: NDArray[np.int64]) -> None:
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    if len(again):
        row = order[again].min()
        raise LogFileError(f"{file}, line {lines[row]}: id {ids[row]} is there before")


def _block(
    file: Path, unit: str, lines: NDArray[np.int64], values_of: Callable[[Column], NDArray[Any]]
) -> Block:
    """Returns the columns of some lines, of which `values_of` gives each or raises CellError."""
    found: Block = {"line": lines}
    for column in COLUMNS:
        try:
            found[column.name] = values_of(column)
        except CellError as failure:
            raise LogFileError(f"{file}, {unit} {lines[failure.row]}: {failure}") from None
    return found


def _require(file: Path, names: list[str]) -> None:
    missing = [column.name for column in COLUMNS if column.name not in names]
    if missing:
        raise LogFileError(f"{file}, line 1: there is no column {', '.join(missing)}")


def _csv_blocks(file: Path) -> Iterator[Block]:
    """Yields the columns of a CSV file, at least once."""
    with _open_text(file) as opened:
        reader = csv.reader(opened, strict=True)
        try:
            heading = next(reader, [])
            _require(file, heading)
            places = {column.name: heading.index(column.name) for column in COLUMNS}
            more = True
            while more:
                rows, lines = [], []
                for row in reader:
                    if len(row) != len(heading):
                        raise LogFileError(
                            f"{file}, line {reader.line_num}: {len(row)} values, not {len(heading)}"
                        )
                    rows.append(row)
                    lines.append(reader.line_num)
                    if len(rows) == _ROWS:
                        break
                more = len(rows) == _ROWS
                turned = list(zip(*rows, strict=True)) or [()] * len(heading)
                texts = {name: turned[place] for name, place in places.items()}
                yield _block(file, "line", np.array(lines, dtype=np.int64), partial(_parsed, texts))
        except csv.Error as failure:
            raise LogFileError(f"{file}, line {reader.line_num}: {failure}") from None
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as failure:
            raise LogFileError(f"{file}, after line {reader.line_num}: {failure}") from None


def _parsed(texts: Mapping[str, Sequence[str]], column: Column) -> NDArray[Any]:
    """Returns the values of a column. Raises CellError."""
    return parse(column, texts[column.name])


def _open_text(file: Path) -> IO[str]:
    if format_of(file) == ".csv.gz":
        return gzip.open(file, "rt", encoding="utf-8", newline="")
    # Spreadsheets begin a file with a mark.
    return file.open(encoding="utf-8-sig", newline="")


def _parquet_blocks(file: Path) -> Iterator[Block]:
    """Yields the columns of a Parquet file, at least once; lines are rows, from 1."""
    schema = arrow_schema()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file)
    except pa.ArrowInvalid as failure:
        raise LogFileError(f"{file}: {failure}") from None
    with opened:
        found = opened.schema_arrow
        _require(file, found.names)
        row = 1
        empty = pa.RecordBatch.from_pylist([], schema=found)
        for batch in chain([empty], opened.iter_batches(_ROWS, columns=schema.names)):
            lines = np.arange(row, row + len(batch))
            row += len(batch)
            yield _block(file, "row", lines, partial(_values, file, batch, schema))


_FILLED = {"integer": UNKNOWN_NUMBER, "time": 0, "truth": False, "word": "", "text": ""}


def _values(file: Path, batch: Any, schema: Any, column: Column) -> NDArray[Any]:
    """Returns the values of a column of a piece of a Parquet file, as `_parsed`."""
    import pyarrow as pa

    given, wanted = batch.column(column.name), schema.field(column.name).type
    try:
        cast = given.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise LogFileError(f"{file}: {column.name} is {given.type}, not {wanted}") from None
    missing = cast.is_null().to_numpy(zero_copy_only=False)
    if column.kind != "number":
        cast = cast.fill_null(pa.scalar(_FILLED[column.kind], type=wanted))
    values = cast.to_numpy(zero_copy_only=False)
    if column.kind in ("word", "text"):
        values = values.astype(np.str_)
        missing = values == ""
    elif column.kind == "time":
        values = values.astype("datetime64[us]")
    check(column, values, missing)
    return np.asarray(values)
