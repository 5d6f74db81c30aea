"""Interactions read by COPY BINARY straight into NumPy columns.

Every column of the query is of fixed width and never null, so each row of PostgreSQL's binary COPY
format (https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format") has the same length
and a buffer of them is a structured array as it stands.
"""

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
        nonlocal header
        pending.extend(data)
        whole = (len(pending) - header) // size
        if whole < 4096:
            return
        await flush(whole)

    async def flush(whole: int) -> None:
        nonlocal header
        end = header + whole * size
        rows = np.frombuffer(bytes(pending[header:end]), dtype=layout.row)
        layout.check(rows)
        del pending[:end]
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
        traits = np.stack([rows[trait] for trait in _TRAITS], axis=1)
        return self._space.index_columns(
            traits,
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
        self._pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in kinds}
        self.rows = 0

    def add(self, **columns: NDArray[Any]) -> None:
        """Adds a piece of every column, shape (n,) each, copied into its dtype."""
        for name, column in columns.items():
            self._pieces[name].append(column.astype(self._kinds[name]))
        self.rows += len(column)

    def column(self, name: str) -> NDArray[Any]:
        """Returns a whole column, and releases it; each can be taken once."""
        pieces = self._pieces.pop(name)
        return np.concatenate([*pieces, np.empty(0, dtype=self._kinds[name])])
