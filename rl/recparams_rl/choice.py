"""Choices by a posterior: the cautious one, and those of its draws.

The cautious choice is the rules' action, or another that is surely better.

An action's advantage over the rules' action counts less a multiple of its posterior deviation,
after Petrik, Ghavamzadeh & Chow, "Safe Policy Improvement by Minimizing Robust Baseline Regret",
NeurIPS 2016, and Laroche, Trichelair & Tachet des Combes, "Safe Policy Improvement with Baseline
Bootstrapping", ICML 2019.

The deviation is the root mean square of the posterior's draws. In the last trait's score z each
draw is a parabola, so that its three coefficients are made once for all bins of that trait.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.basis import BEFORE_LAST, BESIDE_LAST, LAST_SCORE, LAST_SQUARE, TIMES_LAST
from recparams_rl.compiled import Compiled
from recparams_rl.smoothing import Smoothed
from recparams_rl.state import StateSpace, nearest_cells

Float32s = NDArray[np.float32]


def cautious_actions(
    smoothed: Smoothed,
    serving: StateSpace,
    rules: NDArray[np.uint8],
    caution: float,
    states: NDArray[np.integer[Any]] | None = None,
) -> NDArray[np.uint8]:
    """Returns the action that is best with caution in each state, uint8 (n_states,).

    Args:
        smoothed: what is known of all states.
        serving: the state space of the answer, with the contexts of learning.
        rules: the rules' action in each of its states, uint8 (n_states,).
        caution: posterior deviations that an action must be better than the rules' by.
        states: those to choose in, the others are left to the rules; None for all.
    """
    found = rules.reshape(serving.n_cells, serving.n_contexts).copy()
    wanted = np.full(found.shape, states is None)
    if states is not None:
        wanted.ravel()[states] = True
    for context, known in enumerate(_contexts(smoothed, serving, rules)):
        chosen = known.rules.copy()
        _choose(*known, np.float32(caution), np.flatnonzero(wanted[:, context]), chosen)
        found[:, context] = chosen
    return found.ravel()


def sampled_actions(smoothed: Smoothed, rules: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the best action under each draw of the posterior, uint8 (n_states, n_draws).

    Each draw is as likely: Thompson, "On the Likelihood that One Unknown Probability Exceeds
    Another", Biometrika 25, 1933.

    Args:
        smoothed: what is known of all states.
        rules: the rules' action in each state of its space, uint8 (n_states,).
    """
    space, n_draws = smoothed.space, smoothed.away_draws.shape[-1]
    found = np.empty((space.n_cells, space.n_contexts, n_draws), dtype=np.uint8)
    sampled = np.empty((space.n_cells, n_draws), dtype=np.uint8)
    for context, known in enumerate(_contexts(smoothed, space, rules)):
        _sample(*known, sampled)
        found[:, context] = sampled
    return found.reshape(-1, n_draws)


class _Known(NamedTuple):
    """The posterior of the n cells of one context.

    Attributes:
        values: posterior means without `away`, (n, 27).
        rules: the rules' actions, (n,).
        residual: of the cells of learning, (n_cells, 27).
        cells: the cell of learning of each, (n,).
        away: as in `Smoothed`.
        level, slope: of the draws in the last trait's score, (n / bins, m, 27).
        bend: of the draws in its square, (m, 27).
        scores, squares: terms of the last trait alone, by bin, (bins,).
        away_draws: as in `Smoothed`, but (27, m, 27).
    """

    values: Float32s
    rules: NDArray[np.uint8]
    residual: Float32s
    cells: NDArray[np.int64]
    away: Float32s
    level: Float32s
    slope: Float32s
    bend: Float32s
    scores: Float32s
    squares: Float32s
    away_draws: Float32s


def _contexts(
    smoothed: Smoothed, serving: StateSpace, rules: NDArray[np.uint8]
) -> Iterator[_Known]:
    """Yields what is known of each context; arguments as in `cautious_actions`."""
    traits, cells = smoothed.traits(serving), nearest_cells(smoothed.space, serving)
    others, last = traits[:: serving.bins], traits[: serving.bins]
    scores, squares = last[:, LAST_SCORE].copy(), last[:, LAST_SQUARE].copy()
    residual = smoothed.residual.reshape(smoothed.space.n_cells, -1, N_ACTIONS)
    away_draws = np.ascontiguousarray(smoothed.away_draws.transpose(0, 2, 1))
    by_context = rules.reshape(serving.n_cells, serving.n_contexts)
    for context in range(serving.n_contexts):
        draws = np.ascontiguousarray(smoothed.term_draws[context].transpose(1, 2, 0))
        yield _Known(
            traits @ smoothed.terms[context].T,
            np.ascontiguousarray(by_context[:, context]),
            np.ascontiguousarray(residual[:, context]),
            cells,
            smoothed.away,
            np.tensordot(others[:, BESIDE_LAST], draws[BESIDE_LAST], 1),
            np.tensordot(others[:, BEFORE_LAST], draws[TIMES_LAST], 1),
            draws[LAST_SQUARE],
            scores,
            squares,
            away_draws,
        )


@Compiled
def _choose(
    values: Float32s,
    rules: NDArray[np.uint8],
    residual: Float32s,
    cells: NDArray[np.int64],
    away: Float32s,
    level: Float32s,
    slope: Float32s,
    bend: Float32s,
    scores: Float32s,
    squares: Float32s,
    away_draws: Float32s,
    caution: np.float32,
    wanted: NDArray[np.int64],
    chosen: NDArray[np.uint8],
) -> None:
    """Chooses an action in some of n cells of one context.

    Args:
        values, ..., away_draws: the fields of `_Known`.
        caution: posterior deviations.
        wanted: the cells to choose in, (k,).
        chosen: the rules' actions, (n,), replaced where another one is chosen.
    """
    n_draws, n_actions = bend.shape
    bins = len(scores)
    variance = np.empty(n_actions, np.float32)
    deviation = np.empty(n_actions, np.float32)
    for i in wanted:
        rule, own = rules[i], residual[cells[i]]
        group, score, square = i // bins, scores[i % bins], squares[i % bins]
        variance[:] = 0.0
        for m in range(n_draws):
            # Here and in the other loop: a function of its own for it takes twice the time.
            for a in range(n_actions):
                deviation[a] = (
                    away_draws[rule, m, a]
                    + level[group, m, a]
                    + score * slope[group, m, a]
                    + square * bend[m, a]
                )
            of_rule = deviation[rule]
            for a in range(n_actions):
                difference = deviation[a] - of_rule
                variance[a] += difference * difference
        base = values[i, rule] + away[rule, rule] + own[rule]
        best = np.float32(0.0)
        for a in range(n_actions):
            advantage = values[i, a] + away[rule, a] + own[a] - base
            lowered = advantage - caution * np.sqrt(variance[a] / np.float32(n_draws))
            if lowered > best:
                best, chosen[i] = lowered, a


@Compiled
def _sample(
    values: Float32s,
    rules: NDArray[np.uint8],
    residual: Float32s,
    cells: NDArray[np.int64],
    away: Float32s,
    level: Float32s,
    slope: Float32s,
    bend: Float32s,
    scores: Float32s,
    squares: Float32s,
    away_draws: Float32s,
    sampled: NDArray[np.uint8],
) -> None:
    """Finds the best action of each draw in each of n cells of one context.

    Args:
        values, ..., away_draws: the fields of `_Known`.
        sampled: the actions, (n, m), filled.
    """
    n_draws, n_actions = bend.shape
    bins = len(scores)
    mean, deviation = np.empty(n_actions, np.float32), np.empty(n_actions, np.float32)
    for i in range(len(values)):
        rule, own = rules[i], residual[cells[i]]
        group, score, square = i // bins, scores[i % bins], squares[i % bins]
        for a in range(n_actions):
            mean[a] = values[i, a] + away[rule, a] + own[a]
        for m in range(n_draws):
            for a in range(n_actions):
                deviation[a] = (
                    away_draws[rule, m, a]
                    + level[group, m, a]
                    + score * slope[group, m, a]
                    + square * bend[m, a]
                )
            best, action = np.float32(-np.inf), 0
            for a in range(n_actions):
                if mean[a] + deviation[a] > best:
                    best, action = mean[a] + deviation[a], a
            sampled[i, m] = action
