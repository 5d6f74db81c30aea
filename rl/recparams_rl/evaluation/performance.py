"""Means of logged rewards and counts of reactions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.numerics import unique_inverse
from recparams_rl.reward import REACTIONS, reaction_flags


@dataclass(frozen=True)
class LoggedPerformance:
    """Means over logged interactions; 0 if there are none.

    Attributes:
        interactions: how many.
        users: how many people they came from.
        average_reward: mean reward of an interaction.
        like_rate: share of interactions with a like, 0 to 1.
        reaction_counts: interactions with each reaction, by name.
        unknown_propensity: interactions whose propensity is not known.
    """

    interactions: int
    users: int
    average_reward: float
    like_rate: float
    reaction_counts: dict[str, int]
    unknown_propensity: int


def logged_performance(
    user: NDArray[np.int64],
    mask: NDArray[np.integer[Any]],
    reward: NDArray[np.float32],
    pscore: NDArray[np.floating[Any]],
) -> LoggedPerformance:
    """Returns the performance of the policies that served the logged interactions.

    Args:
        user: person of each interaction, shape (n,).
        mask: reaction masks, shape (n,).
        reward: rewards, float32 (n,).
        pscore: propensities, shape (n,), NaN if not known.
    """
    counts = {name: int(np.count_nonzero(reaction_flags(mask, name))) for name in REACTIONS}
    n = len(user)
    return LoggedPerformance(
        interactions=n,
        users=len(unique_inverse(user)[0]),
        average_reward=float(reward.mean(dtype=np.float64)) if n else 0.0,
        like_rate=counts["like"] / n if n else 0.0,
        reaction_counts=counts,
        unknown_propensity=int(np.count_nonzero(np.isnan(pscore))),
    )
