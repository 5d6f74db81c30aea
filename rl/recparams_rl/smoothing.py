"""Smoothing: what a table of values says of all states, and how sure that is.

Done once when a version is published; learning never sees it. Every visited pair's value, corrected
for having begun at 0 (divided by ``1 - (1 - rate) ** n``; Kingma & Ba, "Adam", 2015, section 3), is
an observation with a weight: a constant step size forgets, so that n visits are worth

    (1 - b ** n) (1 + b) / ((1 + b ** n) (1 - b)),  b = 1 - rate

independent ones, never more than (1 + b) / (1 - b). Immediate rewards and what follows them (Q less
reward) are regressed each by themselves (recparams_rl/regression.py) on personality, context and
action (recparams_rl/basis.py), and added with a weight: the noise of bootstrapping then does not
hide what a reaction says at once. What a state's own values differ by from that is added too, as
far as it is known.

The choice is made of it by recparams_rl/choice.py. benchmarks/learning.py measures both.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.basis import basis_of, trait_columns
from recparams_rl.draws import N_SAMPLES
from recparams_rl.numerics import learned_share
from recparams_rl.regression import Curve, Posterior, Prior, Rows, fit
from recparams_rl.state import TRAITS, StateSpace, nearest_cells, of_cells, serving_space

Floats = NDArray[np.float64]
Float32s = NDArray[np.float32]

_SEED = 1
_CAUTIOUS_INTERACTIONS = 3000.0
_EARLY_CAUTION = 4.0
"""Factor on caution up to a number of interactions; beyond, it falls with their square."""

_RULES = np.array([-0.15] * 3 + [-0.225] * 3 + [0.15])
_REWARDS = Prior(0.04, 0.25, 0.3, _RULES, 0.1)
_FOLLOWING = Prior(0.04, 0.25, 0.3, np.zeros(7), 0.03)
"""In standard deviations of a reward: what is expected of a coefficient before any data."""

_LEAST_TRAIT_DEVIATION = 5.0
_UNKNOWN = 10.0


@dataclass(frozen=True)
class Smoothing:
    """Parameters of the smoothing and of the choice.

    Args:
        caution: posterior deviations that an action must be better than the rules' action by, after
            many interactions, 0 or more; four times as many up to 3,000 interactions.
        shrinkage: information that the regression is worth against a state's own values, above 0.
        foresight: weight of what follows an action (its Q-value less its immediate reward), 0 to 1.
        serving_bins: bins a trait of the policy, 3 to 10; 0 for those of learning.

    Raises:
        ValueError: if a value is out of range.
    """

    caution: float = 0.25
    shrinkage: float = 100.0
    foresight: float = 0.0
    serving_bins: int = 7

    def __post_init__(self) -> None:
        if not (0 <= self.caution < inf and 0 < self.shrinkage < inf):
            raise ValueError("caution must be at least 0 and shrinkage above 0, both finite")
        if not 0 <= self.foresight <= 1:
            raise ValueError(f"foresight must be from 0 to 1, not {self.foresight}")
        serving_space(StateSpace(), self.serving_bins)

    def caution_after(self, interactions: int) -> float:
        """Returns the caution after a number of interactions."""
        early = min(1.0, _CAUTIOUS_INTERACTIONS / max(interactions, 1)) ** 2
        return self.caution * (1.0 + (_EARLY_CAUTION - 1.0) * early)


def visited_pairs(visits: NDArray[np.int32]) -> NDArray[np.int64]:
    """Returns the places of the pairs that were visited in a table of visits, ascending, (n,)."""
    # Among booleans NumPy finds them four times as fast as among integers.
    return np.flatnonzero(visits != 0)


@dataclass(frozen=True)
class Visited:
    """The n visited pairs of a table, copied from it.

    Attributes:
        n_states: rows of the table.
        state, action: of each pair, int64 (n,), ascending.
        visits: its updates, above 0, int32 (n,).
        q: its Q-value, learned from zero, float32 (n,).
        rewards: its immediate reward, learned as `q` with a discount of 0, float32 (n,).
    """

    n_states: int
    state: NDArray[np.int64]
    action: NDArray[np.int64]
    visits: NDArray[np.int32]
    q: Float32s
    rewards: Float32s

    @classmethod
    def of(cls, q: Float32s, visits: NDArray[np.int32], rewards: Float32s) -> "Visited":
        """Takes the pairs from the arrays of a table, each of shape (n_states, 27)."""
        at = visited_pairs(visits)
        state, action = np.divmod(at, N_ACTIONS)
        return cls(
            len(visits), state, action, visits.ravel()[at], q.ravel()[at], rewards.ravel()[at]
        )

    @property
    def updates(self) -> int:
        """The number of updates of all pairs."""
        return int(self.visits.sum(dtype=np.int64))

    def by_state(self) -> NDArray[np.int64]:
        """Returns the number of updates of each state, int64 (n_states,)."""
        return np.bincount(self.state, self.visits, self.n_states).astype(np.int64)


@dataclass(frozen=True)
class Smoothed:
    """Result of the smoothing, in units of `scale`.

    Attributes:
        space: of learning.
        scale: standard deviation of rewards.
        populations: the distribution of each trait's scores.
        terms: posterior mean of the factor on each trait term, float32 (n_contexts, 27, 21).
        away: what the distance from the rules' action adds, float32 (27, 27), by rule and action.
        term_draws, away_draws: draws of the deviation from these, with a last axis of draws.
        residual: of the states' own values, float32 (n_states, 27).
    """

    space: StateSpace
    scale: float
    populations: tuple[NormalDist, ...]
    terms: Float32s
    away: Float32s
    term_draws: Float32s
    away_draws: Float32s
    residual: Float32s

    def advantages(self, serving: StateSpace, rules: NDArray[np.uint8]) -> Float32s:
        """Returns each action's advantage over the rules' action, float32 (n_states, 27).

        In units of reward.

        Args:
            serving: the state space of the answer, with the contexts of `space`.
            rules: the rules' action in each of its states, uint8 (n_states,).
        """
        values = np.einsum("xp,cap->xca", self.traits(serving), self.terms, optimize=True)
        values += self.residual.reshape(self.space.n_cells, -1, N_ACTIONS)[
            nearest_cells(self.space, serving)
        ]
        found: Float32s = values.reshape(-1, N_ACTIONS)
        found += self.away[rules]
        found -= found[np.arange(len(found)), rules][:, None]
        found *= np.float32(self.scale)
        return found

    def traits(self, serving: StateSpace) -> Float32s:
        """Returns the trait terms of each cell of a space, float32 (n_cells, 21)."""
        return _trait_terms(serving, self.populations).astype(np.float32)


def smooth(
    space: StateSpace,
    visited: Visited,
    rules: NDArray[np.uint8],
    *,
    learning_rate: float,
    smoothing: Smoothing,
) -> Smoothed:
    """Smooths a table. The same table gives the same result on one machine.

    The last bits may differ between machines and numbers of threads of the linear algebra.

    Args:
        space: the state space, n_states = cells x contexts.
        visited: the pairs of the table that were visited, at least one.
        rules: the rules' action in each state, uint8 (n_states,).
        learning_rate: the step size the table was learned with.
        smoothing: its `shrinkage` and `foresight` are used.
    """
    basis = basis_of(space)
    cell, context = np.divmod(visited.state, space.n_contexts)
    pair = context * N_ACTIONS + visited.action
    # Small integers are sorted by counting.
    order = np.argsort(pair.astype(np.min_scalar_type(pair.max())), kind="stable")
    state, cell, pair = visited.state[order], cell[order], pair[order]
    at = state, visited.action[order]
    n = visited.visits[order].astype(np.float64)
    learned = learned_share(n, learning_rate)
    rows = Rows(
        cell.astype(np.int32),
        pair.astype(np.int32),
        rules[state],
        information(n, learning_rate),
    )
    reward = visited.rewards[order] / learned
    following = smoothing.foresight * (visited.q[order] / learned - reward)
    scale = _scale(reward, rows.weight, n) or _scale(following, rows.weight, n) or 1.0
    populations = populations_of(space, np.bincount(cell, n, space.n_cells).astype(np.float64))
    traits = _trait_terms(space, populations)
    residual = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    posteriors = list[Posterior]()
    parts: list[tuple[Floats, Prior, Curve | None]] = [
        (reward / scale, _REWARDS, _curve(reward / scale, rows.weight))
    ]
    if smoothing.foresight > 0:
        parts.append((following / scale, _FOLLOWING, None))
    for values, prior, curve in parts:
        posterior, misfit = fit(basis, rows, values, traits, prior, curve)
        posteriors.append(posterior)
        residual[at] += misfit * (rows.weight / (rows.weight + smoothing.shrinkage))
    mean = np.sum([posterior.mean for posterior in posteriors], axis=0)
    generator = np.random.default_rng(_SEED)
    draws = np.sum([posterior.draws(generator, N_SAMPLES) for posterior in posteriors], axis=0)
    return Smoothed(
        space,
        scale,
        populations,
        basis.by_trait_term(mean).astype(np.float32),
        basis.by_distance(mean).astype(np.float32),
        basis.by_trait_term(draws).astype(np.float32),
        basis.by_distance(draws).astype(np.float32),
        residual,
    )


def information(visits: Floats, learning_rate: float) -> Floats:
    """Returns the number of independent targets that pairs' values are worth.

    It is the inverse of the sum of squares of the weights that a constant step size gives its
    targets, divided by their sum.

    Args:
        visits: above 0, float64 (n,).
        learning_rate: above 0, up to 1.
    """
    kept = 1.0 - learning_rate
    left = kept**visits
    found: Floats = (1.0 - left) * (1.0 + kept) / ((1.0 + left) * learning_rate)
    return found


def populations_of(space: StateSpace, people: Floats) -> tuple[NormalDist, ...]:
    """Returns a normal distribution of each trait's scores, from the counts of cells.

    Its variance is less by that within a bin (Sheppard's correction).

    Args:
        space: the state space.
        people: visits or people of each cell, (n_cells,), with a sum above 0.
    """
    share = (people / people.sum()).reshape((space.bins,) * len(TRAITS))
    middle, widths = space.midpoints, np.diff(space.edges)
    found = []
    for trait in range(len(TRAITS)):
        of_bins = share.sum(axis=tuple(axis for axis in range(len(TRAITS)) if axis != trait))
        mean = float(of_bins @ middle)
        variance = float(of_bins @ ((middle - mean) ** 2 - widths**2 / 12.0))
        found.append(NormalDist(mean, max(variance, _LEAST_TRAIT_DEVIATION**2) ** 0.5))
    return tuple(found)


def bin_means(population: NormalDist, edges: tuple[float, ...]) -> Floats:
    """Returns the mean score within each bin, (len(edges) - 1,); its middle where nobody is."""
    means = []
    for low, high in pairwise(edges):
        mass = population.cdf(high) - population.cdf(low)
        fall = population.pdf(low) - population.pdf(high)
        inside = mass > 1e-9
        mean = population.mean + population.variance * fall / mass if inside else (low + high) / 2
        means.append(min(max(mean, low), high))
    return np.array(means)


def _trait_terms(space: StateSpace, populations: tuple[NormalDist, ...]) -> Floats:
    """Returns the trait terms of each cell's mean scores, standardised, (n_cells, 21)."""
    return trait_columns(
        of_cells([(bin_means(one, space.edges) - one.mean) / one.stdev for one in populations])
    )


def _centre(values: Floats, weight: Floats) -> float:
    """Returns the mean of n values, drawn towards 0 as by `_UNKNOWN` visits worth 0.

    Where one action alone was tried and liked, the others are then not taken to be liked as well.
    """
    return float(weight @ values / (weight.sum() + _UNKNOWN))


def _scale(values: Floats, weight: Floats, n: Floats) -> float:
    """Returns the standard deviation of values seen once or, if they are few, of all; or 0."""
    once = values[n == 1]
    if len(once) > 50:
        return float(once.std())
    return float(np.sqrt(np.average((values - _centre(values, weight)) ** 2, weights=weight)))


def _curve(values: Floats, weight: Floats) -> Curve:
    """Returns a curve whose bounds lie a little outside of what mean values can be.

    Means lie within the spread of single ones, which is 1, and so do values that are well known.
    """
    centre = _centre(values, weight)
    low, high = centre - 1.25, centre + 1.65
    known = values[weight > 5.0]
    if len(known) > 20:
        least, most = np.quantile(known, [0.05, 0.95])
        low, high = min(low, least - 0.2), max(high, most + 0.2)
    return Curve(float(low), float(high), centre)
