"""Interactions read by COPY BINARY straight into NumPy columns.

Every column of the query is of fixed width and never null, so each row of PostgreSQL's binary COPY
format (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format") has the same length
and a buffer of them is a structured array as it stands.
"""

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.state import StateSpace
from recparams_server.contract.vocabulary import (
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    TIME_OF_DAY_NAMES,
    positions,
)
from recparams_server.store.database import Connection

Rows = NDArray[np.void]

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Zero of `time`, which counts microseconds."""

_HEADER_BYTES = 19
_ROWS_AT_A_TIME = 4096
_SMALL_BYTES = 1 << 16
_PAUSE_SECONDS = 0.0003
_TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
_FIELDS = (
    ("id", "i.id", ">i8"),
    ("user", "i.user_key", ">i8"),
    ("time", "i.occurred_at", ">i8"),
    ("content_type", "i.content_type", ">i2"),
    ("mood", "i.mood", ">i2"),
    ("time_of_day", "i.time_of_day", ">i2"),
    ("action", "i.action", ">i2"),
    ("reactions", "i.reactions", ">i2"),
    ("completion_rate", "coalesce(i.completion_rate, 'NaN')", ">f4"),
    ("mood_change", "coalesce(i.mood_change, 'NaN')", ">f4"),
    ("propensity", "coalesce(i.propensity, 'NaN')", ">f4"),
    *((trait, f"coalesce(i.{trait}, 'NaN')", ">f4") for trait in _TRAITS),
)
_SERVED_FIELDS = (
    ("arm", "coalesce(i.policy_arm, 0::smallint)", ">i2"),
    ("activation", "coalesce(i.activation_id, 0::bigint)", ">i8"),
)


_BLOCK_ROWS = 1 << 18


class Layout:
    """A select list, and the form of its rows in the wire format.

    Args:
        fields: (name, SQL expression, big-endian NumPy type) of each column.

    Attributes:
        names: of the columns.
        select_list: SQL.
        row: dtype of a row as it comes.
    """

    def __init__(self, fields: tuple[tuple[str, str, str], ...]) -> None:
        self.names = tuple(name for name, _, _ in fields)
        self.select_list = ", ".join(expression for _, expression, _ in fields)
        self.row = np.dtype(
            [("fields", ">i2")]
            + [part for n, _, kind in fields for part in ((f"{n}_length", ">i4"), (n, kind))]
        )
        self._lengths = [(f"{name}_length", np.dtype(kind).itemsize) for name, _, kind in fields]

    def check(self, rows: Rows) -> None:
        """Raises ValueError if a row does not have this form."""
        same = bool((rows["fields"] == len(self._lengths)).all())
        for name, size in self._lengths:
            same = same and bool((rows[name] == size).all())
        if not same:
            raise ValueError("a row of COPY output has an unexpected form")


INTERACTIONS = Layout(_FIELDS)
"""The columns that training reads."""

SERVED = Layout((*_FIELDS, *_SERVED_FIELDS))
"""The same and what was served: arm (0 unknown) and activation (0 unknown)."""


async def copy_rows(
    connection: Connection,
    query: str,
    *arguments: object,
    on_rows: Callable[[Rows], Awaitable[None]],
    layout: Layout = INTERACTIONS,
) -> None:
    """Runs a query whose select list is the layout's and hands on its rows as they arrive.

    Args:
        connection: where to read.
        query: SQL with $1, $2, ... for the arguments.
        arguments: of the query.
        layout: of the query's rows.
        on_rows: gets views of the wire format (big-endian fields by name) that must be copied.

    Raises:
        ValueError: a row does not have the form of the layout.
    """
    pending = bytearray()
    header = _HEADER_BYTES
    size = layout.row.itemsize

    async def receive(data: bytes) -> None:
        pending.extend(data)
        whole = (len(pending) - header) // size
        if whole >= _ROWS_AT_A_TIME:
            await flush(whole)
        if len(data) < _SMALL_BYTES:
            # Postgres sends 8 KB at a time, and to be woken for so little costs more than to read.
            time.sleep(_PAUSE_SECONDS)  # noqa: ASYNC251 - shorter than the event loop can

    async def flush(whole: int) -> None:
        nonlocal header, pending
        rows = np.frombuffer(pending, dtype=layout.row, count=whole, offset=header)
        layout.check(rows)
        pending = pending[header + whole * size :]
        header = 0
        await on_rows(rows)

    await connection.copy_from_query(query, *arguments, output=receive, format="binary")
    rest = max(0, len(pending) - header) // size
    if rest:
        await flush(rest)
    if len(pending) != header + 2:
        raise ValueError(f"{len(pending) - header - 2} bytes of COPY output are not a row")


class StateEncoder:
    """A function from rows to the state indices of a space."""

    def __init__(self, space: StateSpace) -> None:
        self._space = space
        self._content_type = positions(CONTENT_TYPE_NAMES, space.content_types)
        self._mood = positions(MOOD_NAMES, space.moods)
        self._time_of_day = positions(TIME_OF_DAY_NAMES, space.times_of_day)

    def __call__(self, rows: Rows) -> NDArray[np.int32]:
        """Returns int32 state indices, shape (n,), as `StateSpace.index_columns` does."""
        # Each trait's scores side by side, as the space goes through them.
        traits = np.stack([rows[trait] for trait in _TRAITS], dtype=np.float64)
        return self._space.index_columns(
            traits.T,
            self._content_type[rows["content_type"]],
            self._mood[rows["mood"]],
            self._time_of_day[rows["time_of_day"]],
        )


class Collector:
    """Columns that arrive in pieces.

    Args:
        kinds: dtype of each column by name.

    Attributes:
        rows: how many have arrived.
    """

    def __init__(self, **kinds: Any) -> None:
        self._kinds = kinds
        # Blocks so large that their memory is given back to the system when they are released.
        self._blocks: dict[str, list[NDArray[Any]]] = {name: [] for name in kinds}
        self._room = 0
        self.rows = 0

    def add(self, **columns: NDArray[Any]) -> None:
        """Adds a piece of every column, shape (n,) each, copied into its dtype."""
        added, size = 0, len(columns[next(iter(self._kinds))])
        while added < size:
            if not self._room:
                for name, kind in self._kinds.items():
                    self._blocks[name].append(np.empty(_BLOCK_ROWS, dtype=kind))
                self._room = _BLOCK_ROWS
            n = min(size - added, self._room)
            start = _BLOCK_ROWS - self._room
            for name, column in columns.items():
                self._blocks[name][-1][start : start + n] = column[added : added + n]
            added += n
            self._room -= n
        self.rows += size

    def column(self, name: str) -> NDArray[Any]:
        """Returns a whole column, and releases it; each can be taken once."""
        found = np.empty(self.rows, dtype=self._kinds[name])
        for position, block in enumerate(self._blocks.pop(name)):
            part = found[position * _BLOCK_ROWS : (position + 1) * _BLOCK_ROWS]
            part[:] = block[: len(part)]
        return found
