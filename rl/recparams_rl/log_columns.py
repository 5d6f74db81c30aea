"""Columns of an analysis file: recorded interactions with names instead of codes, one a row.

`recparams interactions export --for analysis` writes such files and recparams_rl/log_files.py reads
them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import DIMENSIONS
from recparams_rl.arms import ARMS
from recparams_rl.policy import SOURCES
from recparams_rl.reward import REACTIONS
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, TRAITS

Kind = Literal["integer", "number", "time", "truth", "word", "text"]
UNKNOWN_NUMBER = -1
"""What a missing integer is read as."""


class LogFileError(ValueError):
    """A file that is no log of interactions. The message names file, line and column."""


class CellError(ValueError):
    """A value that a column cannot have.

    Args:
        row: its row among those that were given, from 0.
        message: a clause that begins with the column's name.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: in the heading.
        kind: integer (int64), number (float32), time (UTC, to the microsecond), truth (true or
            false), word (one of `words`) or text.
        optional: True if a value may be missing.
        low, high: least and greatest number.
        words: what a word may be.
    """

    name: str
    kind: Kind
    optional: bool = False
    low: float = -inf
    high: float = inf
    words: tuple[str, ...] = ()

    @property
    def must_be(self) -> str:
        """What a value must be, as a clause for error messages."""
        if self.kind == "word":
            return f"one of {', '.join(self.words)}"
        if self.kind in ("integer", "number"):
            noun = "a whole number" if self.kind == "integer" else "a finite number"
            if self.high < inf:
                return f"{noun} from {self.low:g} to {self.high:g}"
            return f"{noun}, {self.low:g} or more" if self.low > -inf else noun
        return _MUST_BE[self.kind]


_MUST_BE = {
    "time": "a time in UTC as in 2026-03-01T12:00:00Z",
    "truth": "true or false",
    "text": "text of at least one character",
}
_LEAST_PROPENSITY = float(np.finfo(np.float32).smallest_subnormal)

COLUMNS = (
    Column("id", "integer", low=0),
    Column("occurred_at", "time"),
    Column("user", "text"),
    *(Column(name, "number", optional=True, low=0, high=100) for name in TRAITS),
    Column("content_type", "word", words=CONTENT_TYPES),
    Column("mood", "word", words=MOODS),
    Column("time_of_day", "word", words=TIMES_OF_DAY),
    *(Column(name, "word", words=levels) for name, levels in DIMENSIONS.items()),
    *(Column(name, "truth") for name in REACTIONS),
    Column("completion_rate", "number", optional=True, low=0, high=1),
    Column("mood_change", "number", optional=True, low=-1, high=1),
    Column("engagement", "number"),
    Column("reward", "number"),
    Column("propensity", "number", optional=True, low=_LEAST_PROPENSITY, high=1),
    Column("arm", "word", optional=True, words=ARMS),
    Column("version", "integer", optional=True, low=0),
    Column("source", "word", optional=True, words=SOURCES),
)
"""All columns in the order of the files: who, the state, the action, the reaction, the decision."""


def parse(column: Column, texts: Sequence[str]) -> NDArray[Any]:
    """Returns texts, n of them, as values, shape (n,), checked as by `check`.

    Args:
        column: theirs.
        texts: an empty one is a missing value.

    Raises:
        CellError: for the first text that is no such value.
    """
    parser = _PARSERS[column.kind]
    try:
        values = parser(texts)
    except (ValueError, KeyError, OverflowError):
        raise _first_unlike(column, texts) from None
    missing = np.zeros(len(texts), dtype=np.bool_)
    if "" in texts:
        missing[:] = [not text for text in texts]
    check(column, values, missing)
    return values


def check(column: Column, values: NDArray[Any], missing: NDArray[np.bool_]) -> None:
    """Raises CellError for the first value that a column cannot have.

    Args:
        column: theirs.
        values: of the dtype of the column's kind, shape (n,).
        missing: True where there is none, shape (n,).
    """
    if column.kind in ("integer", "number"):
        good = (values >= column.low) & (values <= column.high) & np.isfinite(values)
    elif column.kind == "word":
        good = np.isin(values, column.words)
    elif column.kind == "time":
        good = ~np.isnat(values)
    else:
        good = np.ones(len(values), dtype=np.bool_)
    wrong = np.where(missing, not column.optional, ~good)
    if wrong.any():
        row = int(wrong.argmax())
        if missing[row]:
            raise CellError(row, f"{column.name} is missing")
        raise _unlike(column, row, values[row].item())


def _unlike(column: Column, row: int, value: object) -> CellError:
    return CellError(row, f"{column.name} must be {column.must_be}, not {value!r}")


def _first_unlike(column: Column, texts: Sequence[str]) -> CellError:
    parser = _PARSERS[column.kind]
    for row, text in enumerate(texts):
        try:
            parser([text])
        except (ValueError, KeyError, OverflowError):
            return _unlike(column, row, text)
    raise AssertionError("every text can be read by itself")


def _integers(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([int(text or UNKNOWN_NUMBER) for text in texts], dtype=np.int64)


def _numbers(texts: Sequence[str]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.array([float(text) if text else nan for text in texts]).astype(np.float32)


def _times(texts: Sequence[str]) -> NDArray[np.datetime64]:
    # NumPy would take much else, "now" among it, for a time.
    found = [_TIME.fullmatch(text) for text in texts]
    if not all(one or not text for one, text in zip(found, texts, strict=True)):
        raise ValueError
    return np.array([one[1] if one else "NaT" for one in found], dtype="datetime64[us]")


def _truths(texts: Sequence[str]) -> NDArray[np.bool_]:
    return np.array([_TRUTHS[text] for text in texts], dtype=np.bool_)


def _texts(texts: Sequence[str]) -> NDArray[np.str_]:
    return np.array(texts, dtype=np.str_)


_TIME = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?)(?:Z|\+00:00)")
_TRUTHS = {"true": True, "false": False, "True": True, "False": False, "": False}
_PARSERS: dict[Kind, Callable[[Sequence[str]], NDArray[Any]]] = {
    "integer": _integers,
    "number": _numbers,
    "time": _times,
    "truth": _truths,
    "word": _texts,
    "text": _texts,
}
