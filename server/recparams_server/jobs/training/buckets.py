"""Rows that memory has no room for, dealt into buckets in a temporary file."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Piece:
    """Rows that were added together, sorted by bucket and written column after column.

    Attributes:
        places: of each column in the file, bytes.
        starts: row at which each bucket begins, and the end, int64 (n_buckets + 1,).
    """

    places: dict[str, int]
    starts: NDArray[np.int64]


class Buckets:
    """Rows in a file without a name, of which nothing is left however its process ends.

    Neighbouring buckets lie together in each piece, so that they are read together.

    Args:
        folder: where the file is; None for the system's folder of temporary files.
        n: number of buckets.

    Raises:
        OSError: there can be no file, or the disk is full; so do the methods.
    """

    def __init__(self, folder: Path | None, n: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open until `close`
        self._n = n
        self._pieces: list[_Piece] = []
        self._kinds: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}

    def add(self, bucket: NDArray[np.integer[Any]], columns: Columns) -> None:
        """Adds m rows.

        Args:
            bucket: of each row, 0 to n - 1, (m,).
            columns: the same names, types and shapes (m, ...) each time.
        """
        order = np.argsort(bucket.astype(np.uint16), kind="stable")
        self._file.seek(0, os.SEEK_END)
        places = {}
        for name, column in columns.items():
            places[name] = self._file.tell()
            self._file.write(column[order].data)
            self._kinds[name] = column.dtype, column.shape[1:]
        ends = np.cumsum(np.bincount(bucket, minlength=self._n))
        self._pieces.append(_Piece(places, np.concatenate([[0], ends])))

    def parts(self, most: int) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields the rows of neighbouring buckets, ascending; within a part they are in no order.

        Args:
            most: rows of a part, unless one bucket has more.
        """
        sizes = np.sum([np.diff(piece.starts) for piece in self._pieces], axis=0)
        low, size = 0, 0
        for high in range(self._n):
            if size and size + sizes[high] > most:
                yield self._read(low, high)
                low, size = high, 0
            size += int(sizes[high])
        if size:
            yield self._read(low, self._n)

    def _read(self, low: int, high: int) -> dict[str, NDArray[Any]]:
        """Returns the columns of the buckets from `low` up to but not `high`."""
        lengths = [int(piece.starts[high] - piece.starts[low]) for piece in self._pieces]
        return {name: self._column(name, low, lengths) for name in self._kinds}

    def _column(self, name: str, low: int, lengths: list[int]) -> NDArray[Any]:
        kind, shape = self._kinds[name]
        found = np.empty((sum(lengths), *shape), dtype=kind)
        width = kind.itemsize * int(np.prod(shape))
        filled = 0
        for piece, length in zip(self._pieces, lengths, strict=True):
            if length:
                self._file.seek(piece.places[name] + int(piece.starts[low]) * width)
                self._file.readinto(found[filled : filled + length].data.cast("B"))
                filled += length
        return found

    def close(self) -> None:
        """Releases the space on disk."""
        self._file.close()
