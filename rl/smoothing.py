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

At each level but the last, what an action's own visits say is shrunk towards what those of all
actions say that share its energy, its diversity and its novelty: 27 actions are learned as nine
levels first, and only then by themselves.

*Similar people* is a visit-weighted Gaussian kernel over the five personality axes
(Nadaraya-Watson), separable and so five small matrix products. Shrinking is
``(sum of n * deviation + k * parent) / (sum of n + k)``: a state's own data wins as visits grow.
benchmarks/transfer.py measures all this against less.
"""

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.action import ACTION_LEVELS
from rl.compiled import Compiled
from rl.state import TRAITS, StateSpace

Floats = NDArray[np.float32]
Levels = NDArray[np.int64]


@dataclass(frozen=True)
class Smoothing:
    """Width and strength of the smoothing.

    Args:
        kernel_width: standard deviation of the personality kernel, in trait points, above 0.
        shrinkage: weight of a parent level, in visits, above 0.
        rule_bonus: prior advantage of the rules' action, in units of reward, 0 or more.

    Raises:
        ValueError: if a value is out of range.
    """

    kernel_width: float = 20.0
    shrinkage: float = 8.0
    rule_bonus: float = 0.6

    def __post_init__(self) -> None:
        if not (self.kernel_width > 0 and 0 < self.shrinkage < inf and 0 <= self.rule_bonus < inf):
            raise ValueError("kernel_width and shrinkage must be above 0, rule_bonus at least 0")


@dataclass(frozen=True)
class Smoothed:
    """Result of the smoothing.

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
    levels: Levels = ACTION_LEVELS,
) -> Smoothed:
    """Smooths a Q-table.

    Args:
        space: the state space, n_states = cells x contexts.
        q: Q-values, float32 (n_states, n_actions), learned from zero.
        visits: updates of each pair, int32, same shape.
        rule_actions: the prior's action in each state, uint8 (n_states,).
        learning_rate: the step size `q` was learned with.
        smoothing: width and strength.
        levels: level of each action in each dimension, (n_dimensions, n_actions), from 0; without
            dimensions actions have nothing in common.
    """
    n_actions = q.shape[1]
    shape = (space.n_cells, *space.context_shape, n_actions)
    weight = visits.astype(np.float32).reshape(shape)
    total = _unbiased_sums(q, visits, learning_rate).reshape(shape)

    near_weight, near_total = (_over_similar_people(space, x, smoothing) for x in (weight, total))
    # By itself: an action that alone was tried has no baseline, and keeps what it earned.
    others = _shrink_down(
        _of_others(near_weight),
        _of_others(near_total),
        _of_others(weight),
        _of_others(total),
        levels[:0],
        smoothing.shrinkage,
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
        levels,
        smoothing.shrinkage,
    )
    return Smoothed(
        advantage.reshape(q.shape), near_weight.sum(axis=(1, 2, 3, 4), dtype=np.float32)
    )


def _unbiased_sums(q: Floats, visits: NDArray[np.int32], learning_rate: float) -> Floats:
    """Returns visits x bias-corrected Q, 0 for pairs without visits."""
    sums = np.zeros(q.shape, dtype=np.float32)
    visited = np.flatnonzero(visits)
    n = visits.ravel()[visited].astype(np.float64)
    with np.errstate(divide="ignore"):  # a step of 1 leaves nothing of the start: log 0
        learned = -np.expm1(n * np.log1p(-learning_rate))
    sums.ravel()[visited] = q.ravel()[visited] * (n / learned)
    return sums


def _of_others(sums: Floats) -> Floats:
    """Returns, for each action, the sum over all other actions of its state."""
    others: Floats = sums.sum(axis=-1, keepdims=True) - sums
    return others


def _over_similar_people(space: StateSpace, table: Floats, smoothing: Smoothing) -> Floats:
    """Returns kernel-weighted sums along the five personality axes of (cells, ...)."""
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
    levels: Levels,
    k: float,
) -> Floats:
    """Shrinks each level to the one above, from everybody down to the pair's own data.

    Everybody's visits count once each: kernel sums over all cells would count them many times.
    """
    everyone = total, weight
    sums, counts = (x.sum(axis=(0, 1, 2, 3), dtype=np.float64) for x in everyone)
    own = np.empty_like(total)
    _descend(near_weight, near_total, weight, total, sums, counts, levels, k, own)
    return own


@Compiled
def _descend(
    near_weight: Floats,
    near_total: Floats,
    weight: Floats,
    total: Floats,
    all_total: NDArray[np.float64],
    all_weight: NDArray[np.float64],
    levels: Levels,
    k: float,
    own: Floats,
) -> None:
    """Fills `own`; arrays of shape (cells, contents, moods, times, actions), sums of (actions,)."""
    # Levels in float64: far from all data float32 gets so small that processors are slow with it.
    cells, contents, moods, times, actions = total.shape
    scratch = np.empty((2, actions), np.float64)
    everybody = np.zeros(actions, np.float64)
    _refine(everybody, all_total, all_weight, levels, k, scratch)
    # Sums over the times of each mood, the moods of each content type, and those of the cell.
    of_mood = np.empty((2, contents, moods, actions), np.float64)
    of_content = np.empty((2, contents, actions), np.float64)
    of_cell = np.empty((2, actions), np.float64)
    for cell in range(cells):
        of_cell[:] = 0
        of_content[:] = 0
        of_mood[:] = 0
        for c in range(contents):
            for m in range(moods):
                for t in range(times):
                    of_mood[0, c, m] += near_total[cell, c, m, t]
                    of_mood[1, c, m] += near_weight[cell, c, m, t]
                of_content[:, c] += of_mood[:, c, m]
            of_cell += of_content[:, c]
        similar = everybody.copy()
        _refine(similar, of_cell[0], of_cell[1], levels, k, scratch)
        for c in range(contents):
            by_content = similar.copy()
            _refine(by_content, of_content[0, c], of_content[1, c], levels, k, scratch)
            for m in range(moods):
                by_mood = by_content.copy()
                _refine(by_mood, of_mood[0, c, m], of_mood[1, c, m], levels, k, scratch)
                for t in range(times):
                    here = by_mood.copy()
                    sums, counts = near_total[cell, c, m, t], near_weight[cell, c, m, t]
                    _refine(here, sums, counts, levels, k, scratch)
                    for a in range(actions):
                        seen = total[cell, c, m, t, a] + k * here[a]
                        own[cell, c, m, t, a] = seen / (weight[cell, c, m, t, a] + k)


@Compiled
def _refine(
    level: NDArray[np.float64],
    sums: NDArray[Any],
    counts: NDArray[Any],
    levels: Levels,
    k: float,
    scratch: NDArray[np.float64],
) -> None:
    """Brings a level, (actions,), one down, in place: by shared dimensions, then by action."""
    for d in range(levels.shape[0]):
        scratch[:] = 0
        for a in range(len(level)):
            scratch[0, levels[d, a]] += sums[a] - counts[a] * level[a]
            scratch[1, levels[d, a]] += counts[a]
        for a in range(len(level)):
            level[a] += scratch[0, levels[d, a]] / (scratch[1, levels[d, a]] + k)
    for a in range(len(level)):
        level[a] = (sums[a] + k * level[a]) / (counts[a] + k)
