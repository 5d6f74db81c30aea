"""Dense numbers for keys such as people's."""

import numpy as np
from numpy.typing import NDArray


def numbered(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Distinct keys, ascending, and the position of each of n keys among them, shape (n,).

    Keys that are not spread far beyond their number, as those of a database are, need no sorting.
    """
    highest = int(keys.max(initial=0))
    if keys.min(initial=0) < 0 or highest > 8 * len(keys) + 1_000_000:
        distinct, position = np.unique(keys, return_inverse=True)
        return distinct, position.astype(np.int32)
    present = np.zeros(highest + 1, dtype=np.bool_)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present, dtype=np.int32) - np.int32(1))[keys]
