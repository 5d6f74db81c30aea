"""Choices by a posterior: the cautious one, and those of its draws.

The cautious choice is the rules' action, or another that is surely better.

An action's advantage over the rules' action counts less a multiple of its posterior deviation,
after Petrik, Ghavamzadeh & Chow, "Safe Policy Improvement by Minimizing Robust Baseline Regret",
NeurIPS 2016, and Laroche, Trichelair & Tachet des Combes, "Safe Policy Improvement with Baseline
Bootstrapping", ICML 2019.

The deviation is the root mean square of the posterior's draws. In the last trait's score z each
draw is a parabola, so that its three coefficients are made once for all bins of that trait.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.basis import BEFORE_LAST, BESIDE_LAST, LAST_SCORE, LAST_SQUARE, TIMES_LAST
from recparams_rl.compiled import Compiled
from recparams_rl.smoothing import Smoothed
from recparams_rl.state import StateSpace, nearest_cells

Float32s = NDArray[np.float32]

_PARTS = 4
"""Parts of the work that each thread has, so that none waits long for another."""
_GROUPS = 343
"""Groups at a time, of which a core's caches hold the draws."""


def cautious_actions(
    smoothed: Smoothed,
    serving: StateSpace,
    rules: NDArray[np.uint8],
    caution: float,
    states: NDArray[np.integer[Any]] | None = None,
    *,
    threads: int = 1,
) -> NDArray[np.uint8]:
    """Returns the action that is best with caution in each state, uint8 (n_states,).

    Args:
        smoothed: what is known of all states.
        serving: the state space of the answer, with the contexts of learning.
        rules: the rules' action in each of its states, uint8 (n_states,).
        caution: posterior deviations that an action must be better than the rules' by.
        states: those to choose in, the others are left to the rules; None for all.
        threads: most that may be used; the answer is the same for any number.
    """
    found = rules.reshape(serving.n_cells, serving.n_contexts).copy()
    wanted = None
    if states is not None:
        wanted = np.zeros(found.shape, dtype=np.bool_)
        wanted.ravel()[states] = True

    def choose(contexts: range) -> None:
        known = _contexts(smoothed, serving, rules, contexts, wanted, by_draw=True)
        for context, cells, one in known:
            found[cells, context] = _choose(*one, np.float32(caution))

    _deal(choose, serving.n_contexts, threads)
    return found.ravel()


def sampled_actions(
    smoothed: Smoothed, rules: NDArray[np.uint8], *, threads: int = 1
) -> NDArray[np.uint8]:
    """Returns the best action under each draw of the posterior, uint8 (n_states, n_draws).

    Each draw is as likely: Thompson, "On the Likelihood that One Unknown Probability Exceeds
    Another", Biometrika 25, 1933.

    Args:
        smoothed: what is known of all states.
        rules: the rules' action in each state of its space, uint8 (n_states,).
        threads: most that may be used; the answer is the same for any number.
    """
    space, n_draws = smoothed.space, smoothed.away_draws.shape[-1]
    found = np.empty((space.n_cells, space.n_contexts, n_draws), dtype=np.uint8)

    def sample(contexts: range) -> None:
        known = _contexts(smoothed, space, rules, contexts, None, by_draw=False)
        for context, cells, one in known:
            found[cells, context] = _sample(*one)

    _deal(sample, space.n_contexts, threads)
    return found.reshape(-1, n_draws)


def _deal(work: Callable[[range], None], n_contexts: int, threads: int) -> None:
    """Does work for all contexts, some of which each call gets, on several threads."""
    parts = min(n_contexts, _PARTS * threads if threads > 1 else 1)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, range(i, n_contexts, parts)) for i in range(parts)]:
            done.result()


class _Known(NamedTuple):
    """The posterior of n cells of one context.

    The m draws of the 27 actions are ordered by draw and then action, (27 m,), or the other way.

    Attributes:
        values: posterior means without `away`, (n, 27).
        rules: the rules' actions, (n,).
        residual: of the cells of learning, (n_cells, 27).
        cells: the cell of learning of each, (n,).
        away: as in `Smoothed`.
        group: the row of each in `level` and `slope`, (n,).
        scores, squares: terms of the last trait alone, (n,).
        level, slope: of the draws in the last trait's score, (g, 27 m).
        bend: of the draws in its square, (27 m,).
        away_draws: as in `Smoothed`, (27, 27 m).
    """

    values: Float32s
    rules: NDArray[np.uint8]
    residual: Float32s
    cells: NDArray[np.int64]
    away: Float32s
    group: NDArray[np.int64]
    scores: Float32s
    squares: Float32s
    level: Float32s
    slope: Float32s
    bend: Float32s
    away_draws: Float32s


def _contexts(
    smoothed: Smoothed,
    serving: StateSpace,
    rules: NDArray[np.uint8],
    contexts: range,
    wanted: NDArray[np.bool_] | None,
    *,
    by_draw: bool,
) -> Iterator[tuple[int, NDArray[np.int64], _Known]]:
    """Yields contexts, some of their cells and what is known of these, valid until the next.

    Args:
        smoothed, serving, rules: as in `cautious_actions`.
        contexts: those to yield; left out are those without a cell that is wanted.
        wanted: True for cells to yield, bool (n_cells, n_contexts); None for all.
        by_draw: the order of the draws, by draw and then action or the other way.
    """
    traits, nearest = smoothed.traits(serving), nearest_cells(smoothed.space, serving)
    others = traits[:: serving.bins]
    before = others[:, BESIDE_LAST], others[:, BEFORE_LAST]
    residual = smoothed.residual.reshape(smoothed.space.n_cells, -1, N_ACTIONS)
    by_context = rules.reshape(serving.n_cells, serving.n_contexts)
    order = (1, 2, 0) if by_draw else (1, 0, 2)
    away_draws = smoothed.away_draws.transpose(0, 2, 1) if by_draw else smoothed.away_draws
    away_draws = np.ascontiguousarray(away_draws).reshape(N_ACTIONS, -1)
    cells = np.arange(serving.n_cells)
    groups, group = np.arange(len(others)), cells // serving.bins
    room = np.empty((2, _GROUPS, away_draws.shape[1]), dtype=np.float32)
    for context in contexts:
        if wanted is not None:
            cells = np.flatnonzero(wanted[:, context])
            groups, group = np.unique(cells // serving.bins, return_inverse=True)
        draws = np.ascontiguousarray(smoothed.term_draws[context].transpose(order))
        draws = draws.reshape(len(draws), -1)
        beside, times = draws[BESIDE_LAST], draws[TIMES_LAST]
        of_context = np.ascontiguousarray(residual[:, context])
        for first in range(0, len(groups), _GROUPS):
            some = groups[first : first + _GROUPS]
            here = slice(*np.searchsorted(group, (first, first + _GROUPS)))
            level, slope = room[:, : len(some)]
            np.matmul(before[0][some], beside, out=level)
            np.matmul(before[1][some], times, out=slope)
            of_cells = traits[cells[here]]
            yield (
                context,
                cells[here],
                _Known(
                    of_cells @ smoothed.terms[context].T,
                    by_context[cells[here], context],
                    of_context,
                    nearest[cells[here]],
                    smoothed.away,
                    group[here] - first,
                    of_cells[:, LAST_SCORE].copy(),
                    of_cells[:, LAST_SQUARE].copy(),
                    level,
                    slope,
                    draws[LAST_SQUARE],
                    away_draws,
                ),
            )


@Compiled
def _choose(
    values: Float32s,
    rules: NDArray[np.uint8],
    residual: Float32s,
    cells: NDArray[np.int64],
    away: Float32s,
    group: NDArray[np.int64],
    scores: Float32s,
    squares: Float32s,
    level: Float32s,
    slope: Float32s,
    bend: Float32s,
    away_draws: Float32s,
    caution: np.float32,
) -> NDArray[np.uint8]:
    """Returns the cautious choice in n cells of one context, (n,).

    Args:
        values, ..., away_draws: the fields of `_Known`, by draw and then action.
        caution: posterior deviations.
    """
    n_actions = values.shape[1]
    n_draws = len(bend) // n_actions
    chosen = np.empty(len(values), np.uint8)
    deviation = np.empty(len(bend), np.float32)
    variance, lowered = np.empty(n_actions, np.float32), np.empty(n_actions, np.float32)
    four = deviation.reshape(-1, 4, n_actions)
    for i in range(len(values)):
        rule, own = rules[i], residual[cells[i]]
        score, square = scores[i], squares[i]
        of_away, of_level, of_slope = away_draws[rule], level[group[i]], slope[group[i]]
        # Here and in `_sample`: a function of its own for it takes twice the time.
        for k in range(len(deviation)):
            deviation[k] = of_away[k] + of_level[k] + score * of_slope[k] + square * bend[k]
        variance[:] = 0.0
        # Four draws at a time take half the time of one.
        for m in range(len(four)):
            first, second = four[m, 0, rule], four[m, 1, rule]
            third, fourth = four[m, 2, rule], four[m, 3, rule]
            for a in range(n_actions):
                d0, d1 = four[m, 0, a] - first, four[m, 1, a] - second
                d2, d3 = four[m, 2, a] - third, four[m, 3, a] - fourth
                variance[a] = variance[a] + d0 * d0 + d1 * d1 + d2 * d2 + d3 * d3
        mean, to_rule = values[i], away[rule]
        base = mean[rule] + to_rule[rule] + own[rule]
        for a in range(n_actions):
            advantage = mean[a] + to_rule[a] + own[a] - base
            lowered[a] = advantage - caution * np.sqrt(variance[a] / np.float32(n_draws))
        best, chosen[i] = np.float32(0.0), rule
        for a in range(n_actions):
            if lowered[a] > best:
                best, chosen[i] = lowered[a], a
    return chosen


@Compiled
def _sample(
    values: Float32s,
    rules: NDArray[np.uint8],
    residual: Float32s,
    cells: NDArray[np.int64],
    away: Float32s,
    group: NDArray[np.int64],
    scores: Float32s,
    squares: Float32s,
    level: Float32s,
    slope: Float32s,
    bend: Float32s,
    away_draws: Float32s,
) -> NDArray[np.uint8]:
    """Returns the best action of each of m draws in n cells of one context, (n, m).

    Args:
        values, ..., away_draws: the fields of `_Known`, by action and then draw.
    """
    n_actions = values.shape[1]
    n_draws = len(bend) // n_actions
    sampled = np.empty((len(values), n_draws), np.uint8)
    deviation = np.empty(len(bend), np.float32)
    by_action = deviation.reshape(n_actions, n_draws)
    best, action = np.empty(n_draws, np.float32), np.empty(n_draws, np.int32)
    for i in range(len(values)):
        rule, own = rules[i], residual[cells[i]]
        score, square = scores[i], squares[i]
        of_away, of_level, of_slope = away_draws[rule], level[group[i]], slope[group[i]]
        for k in range(len(deviation)):
            deviation[k] = of_away[k] + of_level[k] + score * of_slope[k] + square * bend[k]
        best[:] = -np.inf
        action[:] = 0
        for a in range(n_actions):
            mean = values[i, a] + away[rule, a] + own[a]
            for m in range(n_draws):
                value = mean + by_action[a, m]
                better = value > best[m]
                best[m] = value if better else best[m]
                action[m] = a if better else action[m]
        sampled[i] = action
    return sampled
