"""Interactions as rows of PostgreSQL's binary COPY format.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Each field is its
length in bytes and its value, big-endian; a length of -1 is null.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from recparams_server.contract.interaction import (
    FIELDS,
    NewInteractions,
    are_unknown,
    to_microseconds,
)
from recparams_server.store.columns import POSTGRES_EPOCH

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
INSTANTS = ("occurred_at", "decided_at")
"""The columns that are timestamps."""

_NAMES = FIELDS.names or ()
COLUMNS = ("interaction_id", "user_key", *_NAMES)
"""In the order of a row's fields."""
EPOCH = to_microseconds(POSTGRES_EPOCH)
"""Zero of timestamps, in microseconds since 1970 UTC."""


def encode(given: NewInteractions, user_keys: NDArray[np.int64]) -> bytes:
    """Returns the rows of some interactions, without `HEADER` and `TRAILER`.

    Args:
        given: the interactions.
        user_keys: the user_key of the person of each.
    """
    ids = [one.encode() for one in given.ids]
    lengths = np.array([len(one) for one in ids])
    layout = _layout(int(lengths.max()))
    rows = np.zeros(len(given), dtype=layout)
    # Rows are laid out at their full width; then what is not sent of them is left out.
    sent = np.ones((len(given), layout.itemsize), dtype=np.bool_)
    rows["fields"] = len(COLUMNS)
    rows["bytes of interaction_id"], rows["interaction_id"] = lengths, ids
    _part(sent, layout, "interaction_id")[:] = np.arange(lengths.max()) < lengths[:, np.newaxis]
    rows["bytes of user_key"], rows["user_key"] = 8, user_keys
    for name in _NAMES:
        values = given.fields[name]
        nulls = are_unknown(values)
        rows[name] = values - EPOCH if name in INSTANTS else values
        rows[f"bytes of {name}"] = FIELDS[name].itemsize
        if nulls.any():
            rows[f"bytes of {name}"][nulls] = -1
            _part(sent, layout, name)[nulls] = False
    return rows.view(np.uint8).reshape(sent.shape)[sent].tobytes()


@lru_cache(maxsize=64)
def _layout(longest_id: int) -> np.dtype[np.void]:
    kinds = {"interaction_id": f"S{longest_id}", "user_key": ">i8"}
    kinds |= {name: FIELDS[name].newbyteorder(">").str for name in _NAMES}
    parts = [("fields", ">i2")]
    for name in COLUMNS:
        parts += [(f"bytes of {name}", ">i4"), (name, kinds[name])]
    return np.dtype(parts)


def _part(sent: NDArray[np.bool_], layout: np.dtype[np.void], name: str) -> NDArray[np.bool_]:
    """Returns the columns of bytes that a field takes in rows."""
    fields = layout.fields
    assert fields is not None  # noqa: S101 - it is structured
    kind, start = fields[name][:2]
    return sent[:, start : start + kind.itemsize]
