"""A model of the mean reward of every action, for the direct and doubly robust estimators.

Ridge regression (Hoerl & Kennard 1970) on features x of the state, with a coefficient vector for
each level of each dimension of the action, so that the 27 actions share what is known of them:

    q(x, a) = mean + x . (g_energy[level] + g_diversity[level] + g_novelty[level])

It is cross-fitted (Chernozhukov et al. 2018): nobody's rewards are in the fit that predicts for
them, so errors of the model and rewards are independent.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import LEVEL_ONE_HOTS, N_ACTIONS
from recparams_rl.numerics import splitmix64
from recparams_rl.state import TRAITS, StateSpace, context_one_hots

Floats = NDArray[np.float64]

RIDGE = 30.0
"""Best held-out R^2 on simulated logs of 400 to 200 000 rounds, among 0.1, 1, 3, ... 1000."""

_CHUNK = 1 << 14


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

    Args:
        space: the state space.
        state: int32 (n,), 0 to n_states - 1.
        action: the logged action, uint8 (n,), 0 to 26.
        reward: shape (n,), finite.
        cluster: person of each round, int64 (n,).
        folds: parts the people are split into, at least 2.
        ridge: weight of the prior, a coefficient of 0, in rounds, above 0.

    Returns:
        float32 (n, 27), in units of reward; 0 if there is nobody else to learn from.

    Raises:
        ValueError: if an argument is out of range.
    """
    if folds < 2 or not ridge > 0.0:
        raise ValueError(f"folds must be at least 2, ridge above 0, not {folds} and {ridge}")
    if not ((state >= 0) & (state < space.n_states)).all() or not (action < N_ACTIONS).all():
        raise ValueError(f"states must be from 0 to {space.n_states - 1}, actions to 26")
    features = _Features(space)
    fold = _fold(cluster, folds)
    squares, products = _moments(features, state, action, reward.astype(np.float64), fold, folds)
    estimated = np.empty((len(state), N_ACTIONS), dtype=np.float32)
    for one in range(folds):
        others = np.arange(folds) != one
        mean, coefficients = _fit(squares[others].sum(axis=0), products[others].sum(axis=0), ridge)
        for rows in _chunks(np.flatnonzero(fold == one)):
            estimated[rows] = mean + features.of(state[rows]) @ coefficients.T
    return estimated


class _Features:
    """Features of states: one-hot contexts, alone and in pairs, and midpoints of trait bins."""

    def __init__(self, space: StateSpace) -> None:
        encoded = context_one_hots(space)
        self._contexts = np.hstack([np.ones((space.n_contexts, 1)), *encoded])
        bins = np.unravel_index(np.arange(space.n_cells), (space.bins,) * len(TRAITS))
        self._cells = (2.0 * np.stack(bins, axis=1) + 1.0) / space.bins - 1.0
        self.size = self._contexts.shape[1] + len(TRAITS)

    def of(self, state: NDArray[np.int32]) -> Floats:
        """Returns features of m states, (m, size); the first is 1, traits are in (-1, 1)."""
        cell, context = np.divmod(state, len(self._contexts))
        return np.hstack([self._contexts[context], self._cells[cell]])


def _fold(cluster: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Returns the fold of each row by a fixed hash of its person, int64 (n,)."""
    hashes: NDArray[np.uint64] = splitmix64(cluster.astype(np.uint64))
    return (hashes % np.uint64(folds)).astype(np.int64)


def _chunks(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]


def _moments(
    features: _Features,
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: Floats,
    fold: NDArray[np.int64],
    folds: int,
) -> tuple[Floats, Floats]:
    """Returns sums of x x' and x r by fold and action: (folds, 27, k, k) and (folds, 27, k)."""
    k = features.size
    squares = np.zeros((folds * N_ACTIONS, k, k))
    products = np.zeros((folds * N_ACTIONS, k))
    group = fold * N_ACTIONS + action
    order = np.argsort(group, kind="stable")
    ends = np.cumsum(np.bincount(group, minlength=len(squares)))
    for one, rows in enumerate(np.split(order, ends[:-1])):
        for chunk in _chunks(rows):
            x = features.of(state[chunk])
            squares[one] += x.T @ x
            products[one] += x.T @ reward[chunk]
    return squares.reshape(folds, N_ACTIONS, k, k), products.reshape(folds, N_ACTIONS, k)


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
