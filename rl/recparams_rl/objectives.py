"""Objectives of a recommendation, and the reward as their weighted sum.

*Engagement* is the reward of the reactions (recparams_rl/reward.py). *Diversity* and *novelty* are
how diverse and how new what was recommended is, from the level of the action: 0, 0.5 or 1.
"""

from dataclasses import asdict, dataclass, fields
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import ACTION_INTENSITIES, DIMENSIONS

OBJECTIVES = ("engagement", "diversity", "novelty")

LEVELS = ACTION_INTENSITIES[:, [list(DIMENSIONS).index(name) for name in OBJECTIVES[1:]]].astype(
    np.float32, order="C"
)
"""Diversity and novelty of each action, 0 to 1, float32 (27, 2)."""


@dataclass(frozen=True)
class Objectives:
    """Weights of the objectives; the reward that is learned is their weighted sum.

    Raises:
        ValueError: if one is not a finite number; its message begins with the field's name.
    """

    engagement: float = 1.0
    diversity: float = 0.0
    novelty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isfinite(getattr(self, field.name)):
                raise ValueError(f"{field.name} must be a finite number")

    def to_dict(self) -> dict[str, float]:
        """Returns the weights as plain JSON types."""
        return asdict(self)

    def offsets(self) -> NDArray[np.float32]:
        """Returns the reward of each action that does not depend on reactions, float32 (27,)."""
        weights = np.array((self.diversity, self.novelty), dtype=np.float32)
        return (LEVELS @ weights).astype(np.float32)


def components(engagement: NDArray[np.float32], action: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the objectives of n interactions in the order of `OBJECTIVES`, float32 (n, 3)."""
    return np.column_stack((engagement, LEVELS[action])).astype(np.float32)


def weighted_reward(
    objectives: Objectives, engagement: NDArray[np.float32], action: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Returns the reward that is learned, float32 (n,).

    Args:
        objectives: the weights.
        engagement: reward of the reactions, float32 (n,).
        action: 0 to 26, shape (n,).
    """
    return np.float32(objectives.engagement) * engagement + objectives.offsets()[action]
