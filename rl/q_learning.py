"""Tabular Q-learning over logged transitions, one at a time and in order.

    Q(s, a) <- Q(s, a) + learning_rate * [r + discount_factor * max_a' Q(s', a') - Q(s, a)]

Watkins & Dayan, "Q-learning", Machine Learning 8 (1992); Sutton & Barto, "Reinforcement Learning",
2nd ed., section 6.5. The maximum runs over the actions of s' that have been updated before: an
action nobody tried has no value to bootstrap from. Where there is none, the target is r.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numba import njit
from numpy.typing import NDArray

from rl.hyperparameters import Hyperparameters
from rl.transitions import Transitions

_NONE, _UNKNOWN = np.uint8(254), np.uint8(255)


@njit(nogil=True, cache=True)
def update(
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.float32],
    next_state: NDArray[np.int32],
    learning_rate: np.float32,
    discount_factor: np.float32,
) -> None:
    """Applies the update to every transition in order, in float32, in place.

    Args:
        q: table, float32 (n_states, n_actions), of any size with up to 254 actions.
        visits: updates of each pair so far, int32, same shape.
        state, action, reward, next_state: transitions, shape (m,); next_state is negative at the
            end of an episode.
        learning_rate, discount_factor: float32.
    """
    n_actions = q.shape[1]
    # The best action of each state so far: an update seldom changes it, a look at all is dear.
    best = np.full(q.shape[0], _UNKNOWN, dtype=np.uint8)
    for i in range(state.shape[0]):
        target = reward[i]
        successor = next_state[i]
        if successor >= 0:
            greedy = best[successor]
            if greedy == _UNKNOWN:
                greedy = _NONE
                highest = np.float32(-np.inf)
                for candidate in range(n_actions):
                    if visits[successor, candidate] > 0 and q[successor, candidate] > highest:
                        highest = q[successor, candidate]
                        greedy = np.uint8(candidate)
                best[successor] = greedy
            if greedy != _NONE:
                target += discount_factor * q[successor, greedy]
        s = state[i]
        a = action[i]
        before = q[s, a]
        after = before + learning_rate * (target - before)
        q[s, a] = after
        visits[s, a] += 1
        greedy = best[s]
        if greedy == a:
            if not after >= before:
                best[s] = _UNKNOWN
        elif greedy == _NONE:
            best[s] = _UNKNOWN
        elif greedy != _UNKNOWN and after > q[s, greedy]:
            best[s] = a


def train(
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    transitions: Transitions,
    hyperparameters: Hyperparameters,
    *,
    states_per_cell: int,
    threads: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Learns transitions that are sorted by cell, in place.

    A cell's transitions never leave the cell, so cells are dealt out to threads whole and the table
    is the same, bit for bit, for any number of them.

    Args:
        q: table, float32 (n_states, n_actions).
        visits: updates of each pair so far, int32, same shape.
        transitions: sorted by (cell, time, id).
        hyperparameters: learning_rate and discount_factor are used.
        states_per_cell: consecutive states that form one independent cell.
        threads: at least 1.
        on_progress: called from any of the threads with the number of transitions just learned.
    """
    learning_rate = np.float32(hyperparameters.learning_rate)
    discount_factor = np.float32(hyperparameters.discount_factor)

    def learn(part: slice) -> None:
        update(
            q,
            visits,
            transitions.state[part],
            transitions.action[part],
            transitions.reward[part],
            transitions.next_state[part],
            learning_rate,
            discount_factor,
        )
        if on_progress is not None:
            on_progress(part.stop - part.start)

    parts = split_by_cell(transitions.state // states_per_cell, 4 * threads)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done in [pool.submit(learn, part) for part in parts]:
            done.result()


def split_by_cell(cells: NDArray[np.int32], parts: int) -> list[slice]:
    """Cuts sorted cells, shape (m,), into at most `parts` slices of similar length.

    No cell is cut in two. The slices are not empty, do not overlap and cover everything.
    """
    wanted = np.linspace(0, len(cells), parts + 1)[1:-1].astype(np.int64)
    cuts = np.searchsorted(cells, cells[wanted]) if len(cells) else wanted
    bounds = np.unique(np.r_[0, cuts, len(cells)])
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


@dataclass(frozen=True)
class Statistics:
    """What a table holds; the averages are over visited pairs and 0 where there are none."""

    total_states: int
    total_state_actions: int
    avg_q_value: float
    max_q_value: float
    coverage: float
    total_updates: int


def statistics(q: NDArray[np.float32], visits: NDArray[np.int32]) -> Statistics:
    """Statistics of a table, shapes (n_states, n_actions)."""
    visited = visits > 0
    values = q[visited]
    states = int(np.count_nonzero(visited.any(axis=1)))
    return Statistics(
        total_states=states,
        total_state_actions=len(values),
        avg_q_value=float(values.mean(dtype=np.float64)) if len(values) else 0.0,
        max_q_value=float(values.max()) if len(values) else 0.0,
        coverage=states / len(q),
        total_updates=int(visits.sum(dtype=np.int64)),
    )
