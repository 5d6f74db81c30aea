"""Small numerical functions that several modules share."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.floating[Any])


def softmax(scores: NDArray[Scalar]) -> NDArray[Scalar]:
    """Returns probabilities proportional to the exponentials of scores along the last axis.

    Args:
        scores: finite, float of shape (..., n).

    Returns:
        Shape and dtype of `scores`; sums to 1 along the last axis.
    """
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: NDArray[Scalar] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def learned_share(visits: NDArray[Any], learning_rate: float) -> NDArray[np.float64]:
    """Returns how much of a value learned from zero with a constant step size is of its targets.

    The rest, ``(1 - learning_rate) ** visits``, is of the zero that it began with.

    Args:
        visits: updates of each value, 0 or more, of any shape.
        learning_rate: above 0, up to 1.

    Returns:
        float64 of the same shape, 0 to 1.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a step of 1 leaves nothing of the start
        share: NDArray[np.float64] = -np.expm1(visits * np.log1p(-learning_rate))
    return np.where(visits > 0, share, 0.0)


def splitmix64(x: Any) -> Any:
    """Returns the SplitMix64 hash (Steele et al. 2014) of a uint64 array, or scalar if compiled."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def unique_inverse(keys: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Returns the distinct keys and the position of each key among them.

    Sorts only where keys are spread far beyond their number, as those of a database are not.

    Args:
        keys: int64 (n,), such as people's numbers.

    Returns:
        The distinct keys, ascending, int64 (k,), and positions 0 to k - 1, int32 (n,).
    """
    highest = int(keys.max(initial=0))
    if keys.min(initial=0) < 0 or highest > 8 * len(keys) + 1_000_000:
        distinct, position = np.unique(keys, return_inverse=True)
        return distinct, position.astype(np.int32)
    present = np.zeros(highest + 1, dtype=np.bool_)
    present[keys] = True
    return np.flatnonzero(present), (np.cumsum(present, dtype=np.int32) - np.int32(1))[keys]
