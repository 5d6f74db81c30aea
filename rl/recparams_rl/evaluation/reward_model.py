"""A model of the mean reward of every action, for the direct and doubly robust estimators.

Ridge regression (Hoerl & Kennard 1970) on features x of the state, with a coefficient vector for
each level of each dimension of the action, so that the 27 actions share what is known of them:

    q(x, a) = mean + x . (g_energy[level] + g_diversity[level] + g_novelty[level])

It is cross-fitted (Chernozhukov et al. 2018): nobody's rewards are in the fit that predicts for
them, so errors of the model and rewards are independent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import LEVEL_ONE_HOTS, N_ACTIONS
from recparams_rl.numerics import splitmix64
from recparams_rl.state import TRAITS, StateSpace, context_one_hots

Floats = NDArray[np.float64]

RIDGE = 30.0
"""Best held-out R^2 on simulated logs of 400 to 200 000 rounds, among 0.1, 1, 3, ... 1000."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class RewardModel:
    """Mean rewards of all actions, for each fold of people as learned from the others.

    An estimate is the sum of two parts.

    Attributes:
        of_context: by fold and context, float64 (folds, n_contexts, 27).
        of_cell: by fold and personality cell, float64 (folds, n_cells, 27).
    """

    of_context: Floats
    of_cell: Floats

    def estimates(
        self, state: NDArray[np.int32], cluster: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Returns the estimates of all actions in n rounds, float32 (n, 27), in units of reward.

        Args:
            state: int32 (n,), 0 to n_states - 1.
            cluster: person of each round, as the model was fit with, int64 (n,).
        """
        folds, n_contexts, _ = self.of_context.shape
        fold = _fold(cluster, folds)
        cell, context = np.divmod(state, n_contexts)
        estimated: Floats = self.of_context[fold, context] + self.of_cell[fold, cell]
        return estimated.astype(np.float32)


def estimate_rewards(
    space: StateSpace,
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.floating[Any]],
    cluster: NDArray[np.int64],
    *,
    folds: int = 3,
    ridge: float = RIDGE,
) -> NDArray[np.float32]:
    """Estimates the mean rewards of all actions in n rounds, each from other people's rounds.

    Arguments are as in `fit_rewards`.

    Returns:
        float32 (n, 27), in units of reward; 0 if there is nobody else to learn from.

    Raises:
        ValueError: if an argument is out of range.
    """
    model = fit_rewards(space, state, action, reward, cluster, folds=folds, ridge=ridge)
    estimated = np.empty((len(state), N_ACTIONS), dtype=np.float32)
    for rows in _chunks(len(state)):
        estimated[rows] = model.estimates(state[rows], cluster[rows])
    return estimated


def fit_rewards(
    space: StateSpace,
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.floating[Any]],
    cluster: NDArray[np.int64],
    *,
    folds: int = 3,
    ridge: float = RIDGE,
) -> RewardModel:
    """Fits the mean rewards of all actions to n rounds.

    Args:
        space: the state space.
        state: int32 (n,), 0 to n_states - 1.
        action: the logged action, uint8 (n,), 0 to 26.
        reward: shape (n,), finite.
        cluster: person of each round, int64 (n,).
        folds: parts the people are split into, at least 2.
        ridge: weight of the prior, a coefficient of 0, in rounds, above 0.

    Raises:
        ValueError: if an argument is out of range.
    """
    if folds < 2 or not ridge > 0.0:
        raise ValueError(f"folds must be at least 2, ridge above 0, not {folds} and {ridge}")
    if not ((state >= 0) & (state < space.n_states)).all() or not (action < N_ACTIONS).all():
        raise ValueError(f"states must be from 0 to {space.n_states - 1}, actions to 26")
    features = _Features.of(space)
    squares, products = _moments(features, state, action, reward, cluster, folds)
    of_context, of_cell = [], []
    for one in range(folds):
        others = np.arange(folds) != one
        mean, coefficients = _fit(squares[others].sum(axis=0), products[others].sum(axis=0), ridge)
        by_context, by_cell = np.hsplit(coefficients, [features.contexts.shape[1]])
        of_context.append(mean + features.contexts @ by_context.T)
        of_cell.append(features.cells @ by_cell.T)
    return RewardModel(np.stack(of_context), np.stack(of_cell))


@dataclass(frozen=True)
class _Features:
    """Features of states, in two parts.

    Attributes:
        contexts: 1, and one-hot contexts alone and in pairs, (n_contexts, p).
        cells: midpoints of the bins of traits, in (-1, 1), (n_cells, 5).
    """

    contexts: Floats
    cells: Floats

    @classmethod
    def of(cls, space: StateSpace) -> "_Features":
        bins = np.unravel_index(np.arange(space.n_cells), (space.bins,) * len(TRAITS))
        return cls(
            np.hstack([np.ones((space.n_contexts, 1)), *context_one_hots(space)]),
            (2.0 * np.stack(bins, axis=1) + 1.0) / space.bins - 1.0,
        )


def _fold(cluster: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Returns the fold of each row by a fixed hash of its person, int64 (n,)."""
    hashes: NDArray[np.uint64] = splitmix64(cluster.astype(np.uint64))
    return (hashes % np.uint64(folds)).astype(np.int64)


def _chunks(n: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, n, _CHUNK)]


def _moments(
    features: _Features,
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.floating[Any]],
    cluster: NDArray[np.int64],
    folds: int,
) -> tuple[Floats, Floats]:
    """Returns sums of x x' and x r by fold and action: (folds, 27, k, k) and (folds, 27, k).

    Features of a context are those of all its rows, so that rows are only summed up by context.
    """
    n_contexts, p = features.contexts.shape
    groups, traits = folds * N_ACTIONS, len(TRAITS)
    # Of each group and context: 1, the traits, and the reward.
    in_context = np.zeros((2 + traits, groups * n_contexts))
    # Of each group: products of traits with each other and with the reward.
    in_group = np.zeros((traits, traits + 1, groups))
    for rows in _chunks(len(state)):
        cell, context = np.divmod(state[rows], n_contexts)
        group = _fold(cluster[rows], folds) * N_ACTIONS + action[rows]
        place = group * n_contexts + context
        columns = np.vstack([features.cells[cell].T, reward[rows]])
        for total, column in zip(in_context, (np.ones(len(group)), *columns), strict=True):
            total += np.bincount(place, column, minlength=len(total))
        for i, j in np.ndindex(traits, traits + 1):
            in_group[i, j] += np.bincount(group, columns[i] * columns[j], minlength=groups)
    count, *of_traits, rewarded = in_context.reshape(-1, groups, n_contexts)
    squares = np.empty((groups, p + traits, p + traits))
    products = np.empty((groups, p + traits))
    one_hots = features.contexts
    pairs = (one_hots[:, :, None] * one_hots[:, None, :]).reshape(n_contexts, p * p)
    squares[:, :p, :p] = (count @ pairs).reshape(groups, p, p)
    squares[:, p:, :p] = np.stack(of_traits, axis=1) @ one_hots
    squares[:, :p, p:] = squares[:, p:, :p].swapaxes(1, 2)
    squares[:, p:, p:] = in_group[:, :traits].transpose(2, 0, 1)
    products[:, :p] = rewarded @ one_hots
    products[:, p:] = in_group[:, traits].T
    return (
        squares.reshape(folds, N_ACTIONS, *squares.shape[1:]),
        products.reshape(folds, N_ACTIONS, -1),
    )


def _fit(squares: Floats, products: Floats, ridge: float) -> tuple[float, Floats]:
    """Returns the mean reward, and each action's coefficients of the rest, (27, k)."""
    k, levels = squares.shape[-1], LEVEL_ONE_HOTS.shape[1]
    mean = float(products[:, 0].sum() / max(squares[:, 0, 0].sum(), 1.0))
    gram = np.einsum("ap,aq,aij->piqj", LEVEL_ONE_HOTS, LEVEL_ONE_HOTS, squares, optimize=True)
    gram = gram.reshape(levels * k, levels * k)
    moment = LEVEL_ONE_HOTS.T @ (products - mean * squares[:, 0])
    solved = np.linalg.solve(gram + ridge * np.eye(levels * k), moment.ravel())
    coefficients: Floats = LEVEL_ONE_HOTS @ solved.reshape(levels, k)
    return mean, coefficients
