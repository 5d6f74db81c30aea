"""The reward: a weighted sum of reactions, completion rate and mood change."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import lru_cache
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

REACTIONS = ("like", "dislike", "complete", "skip", "share", "impression")
"""Reaction k is bit ``1 << k`` of a reaction mask."""

EXCLUSIVE_REACTIONS = (("like", "dislike"), ("complete", "skip"))
"""Pairs of reactions of which an interaction has at most one."""


def _weight(default: float, description: str) -> Any:
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class RewardWeights:
    """Reward of each reaction, and the factors on completion rate and mood change.

    Each field becomes a setting of the server, ``reward_`` and its name, described by its metadata.

    Raises:
        ValueError: if a weight is not a finite number.
    """

    like: float = _weight(1.0, "Reward of a like.")
    dislike: float = _weight(-1.0, "Reward of a dislike.")
    complete: float = _weight(0.5, "Reward of a completion.")
    skip: float = _weight(-0.3, "Reward of a skip.")
    share: float = _weight(0.8, "Reward of a share.")
    impression: float = _weight(0.0, "Reward of an impression.")
    completion_rate: float = _weight(0.5, "Factor on the completion rate, 0 to 1.")
    mood_change: float = _weight(0.5, "Factor on the mood change, -1 to 1.")

    def __post_init__(self) -> None:
        for one in fields(self):
            if not isfinite(getattr(self, one.name)):
                raise ValueError(f"the weight of {one.name} must be a finite number")


def reaction_mask(reactions: Iterable[str]) -> int:
    """Returns the mask of the named reactions. Raises ValueError if a name is unknown."""
    mask = 0
    for reaction in reactions:
        mask |= 1 << REACTIONS.index(reaction)
    return mask


def reaction_flags(mask: NDArray[np.integer[Any]], reaction: str) -> NDArray[np.bool_]:
    """Returns True for each mask that has the reaction, shape (n,) -> bool (n,)."""
    return (mask >> REACTIONS.index(reaction) & 1).astype(np.bool_)


def rewards(
    weights: RewardWeights,
    mask: NDArray[np.integer[Any]],
    completion_rate: ArrayLike,
    mood_change: ArrayLike,
) -> NDArray[np.float32]:
    """Returns the rewards of n interactions.

    Args:
        weights: the weights.
        mask: reaction masks, shape (n,), 0 to 2^len(REACTIONS) - 1.
        completion_rate: 0 to 1, shape (n,); NaN if not reported, which counts 0.
        mood_change: -1 to 1, shape (n,); NaN if not reported, which counts 0.

    Returns:
        float32 (n,): the sum of the reactions' weights + completion_rate's weight x it +
        mood_change's weight x it.
    """
    completed, moved = (
        np.where(np.isnan(given), np.float32(0.0), given)
        for given in (
            np.asarray(completion_rate, dtype=np.float32),
            np.asarray(mood_change, dtype=np.float32),
        )
    )
    total: NDArray[np.float32] = (
        _of_masks(weights)[mask]
        + np.float32(weights.completion_rate) * completed
        + np.float32(weights.mood_change) * moved
    )
    return total


@lru_cache(maxsize=16)
def _of_masks(weights: RewardWeights) -> NDArray[np.float32]:
    """Returns the sum of the weights of the reactions of every mask, float32 (64,), read-only."""
    every = np.arange(1 << len(REACTIONS))
    of_mask = np.zeros(len(every), dtype=np.float32)
    for reaction in REACTIONS:
        of_mask += reaction_flags(every, reaction) * np.float32(getattr(weights, reaction))
    of_mask.setflags(write=False)
    return of_mask
