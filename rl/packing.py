"""Named arrays as bytes and back: NumPy's npz format, in which nothing is executed."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The same arrays give the same bytes."""
    stream = BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """Writable arrays. Raises ValueError where the bytes are none that `pack` gives."""
    try:
        with np.load(BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (BadZipFile, OSError, EOFError, KeyError, ValueError) as failure:
        raise ValueError(f"not packed arrays: {failure}") from None
