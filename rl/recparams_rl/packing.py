"""Serialisation of named arrays in NumPy's npz format, without pickling."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialises arrays by name. The same arrays give the same bytes."""
    stream = BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """Returns the arrays by name, writable. Raises ValueError unless `pack` made the bytes."""
    try:
        with np.load(BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    # Of damaged archives zipfile, zlib and NumPy raise a dozen types that nobody lists.
    except Exception as failure:
        raise ValueError(f"not packed arrays: {failure}") from None
