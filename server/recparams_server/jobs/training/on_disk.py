"""Runs of more interactions than memory has room for: dealt out on disk, learned part after part.

Interactions are dealt by person, since what is due of one depends on nobody else's, and their
transitions then by personality cell. Cells are learned in order, and within each the transitions in
theirs: the same updates in the same order as of all transitions at once.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.comparison import Log
from recparams_rl.transitions import Due, Transitions
from recparams_server.jobs.training.buckets import Buckets
from recparams_server.jobs.training.holdout import MOST_HELD_OUT, held_out, split_of_latest
from recparams_server.jobs.training.reading import Columns, Reading, due_transitions
from recparams_server.settings import Settings

LEAST_ROWS = 1 << 14
_FIXED_BYTES = 250_000_000
_TABLES = 2
"""Tables of Q-values, visits and rewards beside the rows."""
_ROW_BYTES = 190
_TRAITS_BYTES = 60
"""Bytes that a row takes at most while it is read, chained and sorted; measured."""
_LARGE_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3
_PEOPLE = 256
_BY_CELL = 1024
_TOGETHER = 1 << 18
"""Rows that are chained, or learned, at a time, about: the caches hold them."""

_LOGGED = "user", "serving_state", "engagement", "pscore"

_T = TypeVar("_T")
_Named = dict[str, NDArray[Any]]
_OfLog = Callable[[NDArray[np.int64]], _Named]


def rows_in_memory(settings: Settings, reading: Reading) -> int:
    """Returns the number of interactions that a run may hold in memory, at least `LEAST_ROWS`."""
    table = settings.space().n_states * N_ACTIONS * 12
    room = settings.training_memory_mb * 1_000_000 - _FIXED_BYTES - _TABLES * table
    return max(LEAST_ROWS, room // (_ROW_BYTES + (_TRAITS_BYTES if reading.traits else 0)))


@dataclass(frozen=True)
class Prepared:
    """Summary of what is due on disk.

    Attributes:
        due: of all people.
        reward_sum: of the transitions.
        log: what is held out at first; propensities may be NaN.
        ids: of the interactions in the log, int64 (n,).
    """

    due: Due
    reward_sum: float
    log: Log
    ids: NDArray[np.int64]


class OnDisk:
    """The interactions of a run, on disk from when memory has no room for them.

    Args:
        settings: the state space, the memory and the folder.
        reading: the selection that the run reads.

    Attributes:
        most: interactions in memory at a time.
        rest: transitions due that are not held out at first.
    """

    def __init__(self, settings: Settings, reading: Reading) -> None:
        self.most = rows_in_memory(settings, reading)
        self._together = min(self.most, _TOGETHER)
        self.rest = 0
        self._settings = settings
        self._request = reading.request
        self._people: Buckets | None = None
        self._cells: Buckets | None = None
        self._earliest, self._latest = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        self._split: int | None = None
        self._tail: _Named = {}

    def __bool__(self) -> bool:
        """Returns True once interactions were added."""
        return self._people is not None

    def add(self, columns: Columns) -> None:
        """Deals interactions, at least one, by person. Raises OSError."""
        if self._people is None:
            give_back_large_arrays()
            self._people = Buckets(_folder(self._settings), _PEOPLE)
        of = columns.interactions
        self._earliest = min(self._earliest, int(of.time.min()))
        self._latest = max(self._latest, int(of.time.max()))
        self._people.add(of.user % _PEOPLE, columns.to_dict())

    def prepare(self) -> Prepared:
        """Deals what is due by cell, and returns a summary of it. Raises OSError."""
        assert self._people is not None  # noqa: S101 - some were added
        self._cells = Buckets(_folder(self._settings), _BY_CELL)
        tail = _Latest(self._settings.holdout_share)
        dues, reward_sum = [], 0.0
        for due, rows, of_log in _ahead(map(self._chained, self._people.parts(self._together))):
            dues.append(due)
            reward_sum += float(rows["reward"].sum(dtype=np.float64))
            tail.add(rows, of_log)
            self._cells.add(self._bucket(rows), rows)
        self._people.close()
        self._split, held_out = tail.split()
        self._tail = self._in_order(held_out)
        self.rest = tail.n - len(held_out["time"])
        return Prepared(Due.joined(dues), reward_sum, _log(self._tail), self._tail["id"])

    def _chained(self, part: _Named) -> tuple[Due, _Named, _OfLog]:
        """Returns what is due of some people, from all their interactions.

        A summary, the columns that learning needs, and a function from places among these to the
        other columns, which few rows need.
        """
        columns = Columns.from_dict(part)
        space = self._settings.space()
        batch = due_transitions(columns.interactions, self._request, space.n_contexts)
        learned = {name: one for name, one in vars(batch.transitions).items() if one is not None}
        learned |= {name: part[name][batch.rows] for name in ("time", "id")}

        def of_log(places: NDArray[np.int64]) -> _Named:
            return {name: part[name][batch.rows[places]] for name in _LOGGED}

        return Due(**batch.due()), learned, of_log

    def parts(self, *, tail: bool) -> Iterator[Transitions]:
        """Yields transitions in the order of learning: those held out at first, or the rest."""
        if tail:
            yield _transitions(self._tail)
            return
        assert self._cells is not None  # noqa: S101 - prepared before
        yield from _ahead(map(self._learned_first, self._cells.parts(self._together)))

    def _learned_first(self, rows: _Named) -> Transitions:
        """Returns the transitions of some cells that are not held out at first."""
        if self._split is not None:
            rows = _chosen(rows, rows["time"] < self._split)
        return _transitions(self._in_order(rows))

    def close(self) -> None:
        """Releases the space on disk and in memory."""
        for buckets in (self._people, self._cells):
            if buckets is not None:
                buckets.close()
        self._tail = {}

    def _cell(self, rows: _Named) -> NDArray[np.int64]:
        return rows["state"].astype(np.int64) // self._settings.space().n_contexts

    def _bucket(self, rows: _Named) -> NDArray[np.int64]:
        """Returns buckets in the order of cells; where cells are few, each has several, by time."""
        n_cells = self._settings.space().n_cells
        ranges = min(n_cells, _BY_CELL)
        periods = _BY_CELL // ranges
        period = (rows["time"] - self._earliest) // ((self._latest - self._earliest) // periods + 1)
        bucket: NDArray[np.int64] = self._cell(rows) * ranges // n_cells * periods + period
        return bucket

    def _in_order(self, rows: _Named) -> _Named:
        """Returns rows sorted by (cell, time, id)."""
        return _chosen(rows, _order(self._cell(rows), rows["time"], rows["id"]))


class _Latest:
    """The latest of some rows: all that may have to be held out.

    Args:
        share: share to hold out, as of `split_time`.

    Attributes:
        n: rows so far.
    """

    def __init__(self, share: float) -> None:
        self.n = 0
        self._share = share
        self._earliest = np.iinfo(np.int64).max
        self._from = np.iinfo(np.int64).min
        self._kept: list[_Named] = []

    def add(self, rows: _Named, of_log: _OfLog) -> None:
        """Adds rows, keeping what may be among the latest, with the columns that `of_log` gives."""
        time = rows["time"]
        self.n += len(time)
        self._earliest = min(self._earliest, int(time.min(initial=self._earliest)))
        places = np.flatnonzero(time >= self._from)
        self._kept.append(_chosen(rows, places) | of_log(places))
        if sum(len(piece["time"]) for piece in self._kept) > 2 * MOST_HELD_OUT:
            self._merge()

    def _merge(self) -> None:
        """Makes one piece of what is kept, the latest of it."""
        joined = _joined(self._kept)
        self._kept = [_chosen(joined, _latest(joined["time"]))]
        time = self._kept[0]["time"]
        if len(time) >= MOST_HELD_OUT:
            self._from = int(time.min())

    def split(self) -> tuple[int | None, _Named]:
        """Returns what `split_time` returns of all rows, and the rows that are held out."""
        self._merge()
        time = self._kept[0]["time"]
        split = split_of_latest(time, self.n, self._earliest, self._share)
        return split, _chosen(self._kept[0], held_out(time, split))


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """Yields items, of which the next is made by another thread meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def give_back_large_arrays() -> None:
    """Gives released arrays of a mebibyte and more back to the system, from now on.

    glibc raises that size to 32 MB by and by, and what is smaller is kept for other parts, which
    then do not fit: 100 million interactions took twice the memory so. Other C libraries have no
    such setting. Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _order(
    cell: NDArray[np.int64], time: NDArray[np.int64], id_: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Returns the order by (cell, time, id), by one sort where both fit into a number."""
    if len(cell):
        cell, time = cell - cell.min(), time - time.min()
        period = int(time.max()) + 1
        if (int(cell.max()) + 1) * period < np.iinfo(np.int64).max:
            key = cell * period + time
            order = np.argsort(key, kind="stable")
            key, ids = key[order], id_[order]
            if not ((key[1:] == key[:-1]) & (ids[1:] < ids[:-1])).any():
                return order
    return np.lexsort((id_, time, cell))


def _latest(time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the places of the latest `MOST_HELD_OUT` of some times, and of those equal to one."""
    if len(time) <= MOST_HELD_OUT:
        return np.arange(len(time))
    return np.flatnonzero(time >= np.partition(time, -MOST_HELD_OUT)[-MOST_HELD_OUT])


def _folder(settings: Settings) -> Path | None:
    """Returns the data directory, or None where there can be none."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return settings.data_dir if os.access(settings.data_dir, os.W_OK) else None


def _joined(parts: list[_Named]) -> _Named:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _chosen(rows: _Named, chosen: NDArray[Any]) -> _Named:
    return {name: column[chosen] for name, column in rows.items()}


def _transitions(rows: _Named) -> Transitions:
    return Transitions(
        rows["state"], rows["action"], rows["reward"], rows["next_state"], rows.get("traits")
    )


def _log(rows: _Named) -> Log:
    return Log(
        state=rows["serving_state"],
        action=rows["action"],
        engagement=rows["engagement"],
        pscore=rows["pscore"],
        person=rows["user"],
        traits=rows.get("traits"),
    )
