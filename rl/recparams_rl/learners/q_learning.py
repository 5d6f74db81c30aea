"""Tabular Q-learning over logged transitions, one at a time and in order.

    Q(s, a) <- Q(s, a) + learning_rate * [r + discount_factor * max_a' Q(s', a') - Q(s, a)]

Watkins & Dayan, "Q-learning", Machine Learning 8 (1992); Sutton & Barto, "Reinforcement Learning",
2nd ed., section 6.5. The maximum runs over the actions of s' that have been updated before: an
action nobody tried has no value to bootstrap from. Where there is none, the target is r.
"""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.compiled import Compiled
from recparams_rl.learners.base import OnProgress
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.tabular import TabularLearner, learn_by_cell
from recparams_rl.transitions import Transitions

_NONE, _UNKNOWN = np.uint8(254), np.uint8(255)


@Compiled
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


class QLearning(TabularLearner):
    """Watkins' Q-learning; the policy is epsilon-greedy on the smoothed table."""

    algorithm: ClassVar[str] = "q_learning"

    def _update(self, part: Transitions) -> None:
        _learn(self.q, self.visits, part, self.hyperparameters)


def train(
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    transitions: Transitions,
    hyperparameters: Hyperparameters,
    *,
    states_per_cell: int,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> None:
    """Learns transitions into a table of any size, in place.

    Args:
        q: table, float32 (n_states, n_actions).
        visits: updates of each pair so far, int32, same shape.
        transitions, states_per_cell, threads, on_progress: as in
            `recparams_rl.learners.tabular.learn_by_cell`.
        hyperparameters: learning_rate and discount_factor are used.
    """
    learn_by_cell(
        transitions,
        states_per_cell,
        lambda part: _learn(q, visits, part, hyperparameters),
        threads=threads,
        on_progress=on_progress,
    )


def _learn(
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    part: Transitions,
    hyperparameters: Hyperparameters,
) -> None:
    update(
        q,
        visits,
        part.state,
        part.action,
        part.reward,
        part.next_state,
        np.float32(hyperparameters.learning_rate),
        np.float32(hyperparameters.discount_factor),
    )
