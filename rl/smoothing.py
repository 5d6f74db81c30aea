"""Smoothing: a state with little data borrows from similar people and neighbouring contexts.

Done once when a version is published; learning never sees it. Every pair's Q-value is taken as the
mean of what its visits saw (constant-step-size Q from zero divided by ``1 - (1 - rate) ** n``, the
bias correction of Kingma & Ba, "Adam", 2015, section 3). From it comes the *advantage* over what
the other actions brought in that state, so that an action tried mostly in happy states does not
look good for that alone, while one that alone was tried keeps what it earned. The rules' action is
expected to have an advantage of `rule_bonus` in its own context, any other none, and the
*deviation* from that is borrowed: what everybody likes on the whole then moves the rules' choice in
a context, and does not replace it. Both the baseline and the deviations are shrunk level by level,
each towards the one before (hierarchical shrinkage, as in Gelman & Hill, "Data Analysis Using
Regression and Multilevel/Hierarchical Models", 2007, ch. 12):

    0 -> everybody -> similar people -> + content type -> + mood -> + time of day -> own data

*Similar people* is a visit-weighted Gaussian kernel over the five personality axes
(Nadaraya-Watson), separable and so five small matrix products. Shrinking is
``(sum of n * deviation + k * parent) / (sum of n + k)``: a state's own data wins as visits grow.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from rl.state import TRAITS, StateSpace

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Smoothing:
    """How far and how strongly to borrow.

    Args:
        kernel_width: standard deviation of the personality kernel, in trait points (of 100).
        shrinkage: visits a parent level is worth.
        rule_bonus: advantage the rules' action has in the absence of data, in units of reward.
    """

    kernel_width: float = 20.0
    shrinkage: float = 8.0
    rule_bonus: float = 0.1

    def __post_init__(self) -> None:
        if not (self.kernel_width > 0 and 0 < self.shrinkage < inf and 0 <= self.rule_bonus < inf):
            raise ValueError("kernel_width and shrinkage must be above 0, rule_bonus at least 0")


@dataclass(frozen=True)
class Smoothed:
    """The result.

    Attributes:
        advantage: float32 (n_states, n_actions), comparable within a state.
        evidence: float32 (n_cells,), kernel-weighted visits of similar people, in any context.
    """

    advantage: Floats
    evidence: Floats


def smooth(
    space: StateSpace,
    q: Floats,
    visits: NDArray[np.int32],
    rule_actions: NDArray[np.uint8],
    *,
    learning_rate: float,
    smoothing: Smoothing,
) -> Smoothed:
    """Smooths a table.

    Args:
        space: the state space, n_states = cells x contexts.
        q: Q-values, float32 (n_states, n_actions), learned from zero.
        visits: updates of each pair, int32, same shape.
        rule_actions: the prior's action in each state, uint8 (n_states,).
        learning_rate: the step size `q` was learned with.
        smoothing: how to smooth.
    """
    n_actions = q.shape[1]
    shape = (space.n_cells, *space.context_shape, n_actions)
    weight = visits.astype(np.float32).reshape(shape)
    total = _unbiased_sums(q, visits, learning_rate).reshape(shape)

    near_weight, near_total = (_over_similar_people(space, x, smoothing) for x in (weight, total))
    others = _shrink_down(
        *(_of_others(x) for x in (near_weight, near_total, weight, total)), k=smoothing.shrinkage
    )
    prior = np.zeros((len(rule_actions), n_actions), dtype=np.float32)
    prior[np.arange(len(rule_actions)), rule_actions] = smoothing.rule_bonus
    prior = prior.reshape(shape)

    total -= weight * (others + prior)
    advantage = prior + _shrink_down(
        near_weight,
        _over_similar_people(space, total, smoothing),
        weight,
        total,
        k=smoothing.shrinkage,
    )
    return Smoothed(
        advantage.reshape(q.shape), near_weight.sum(axis=(1, 2, 3, 4), dtype=np.float32)
    )


def _unbiased_sums(q: Floats, visits: NDArray[np.int32], learning_rate: float) -> Floats:
    """Visits x bias-corrected Q, 0 where not visited."""
    sums = np.zeros(q.shape, dtype=np.float32)
    visited = np.flatnonzero(visits)
    n = visits.ravel()[visited].astype(np.float64)
    with np.errstate(divide="ignore"):  # a step of 1 leaves nothing of the start: log 0
        learned = -np.expm1(n * np.log1p(-learning_rate))
    sums.ravel()[visited] = q.ravel()[visited] * (n / learned)
    return sums


def _of_others(sums: Floats) -> Floats:
    """For each action, the sum over all the other ones of its state."""
    others: Floats = sums.sum(axis=-1, keepdims=True) - sums
    return others


def _over_similar_people(space: StateSpace, table: Floats, smoothing: Smoothing) -> Floats:
    """Kernel-weighted sums along the five personality axes of (cells, ...)."""
    centre = np.arange(space.bins) * (100.0 / space.bins)
    distance = (centre[:, None] - centre[None, :]) / smoothing.kernel_width
    kernel = np.exp(-0.5 * distance**2).astype(np.float32)
    summed = table
    for axis in range(len(TRAITS)):
        summed = kernel @ summed.reshape(space.bins**axis, space.bins, -1)
    return summed.reshape(table.shape)


def _shrink_down(
    near_weight: Floats,
    near_total: Floats,
    weight: Floats,
    total: Floats,
    *,
    k: float,
) -> Floats:
    """From everybody down to the pair's own data, each level shrunk to the one above.

    Everybody's visits count once each: kernel sums over all cells would count them many times.
    """
    everybody = (0, 1, 2, 3)
    sums, counts = (x.sum(axis=everybody, dtype=np.float64) for x in (total, weight))
    level: Floats = (sums / (counts + k)).astype(np.float32)
    for pooled in ((1, 2, 3), (2, 3), (3,), ()):
        sums = near_total.sum(axis=pooled, keepdims=True)
        counts = near_weight.sum(axis=pooled, keepdims=True)
        level = (sums + np.float32(k) * level) / (counts + np.float32(k))
    own: Floats = (total + np.float32(k) * level) / (weight + np.float32(k))
    return own
