"""Double Q-learning: two tables, each of which values the other's greedy action.

    Q_A(s, a) <- Q_A(s, a) + learning_rate * [r + discount_factor * Q_B(s', a*) - Q_A(s, a)]
    with a* = argmax_a' Q_A(s', a'), and A and B swapped for every other update at random

van Hasselt, "Double Q-learning", NeurIPS 23 (2010); Sutton & Barto, 2nd ed., section 6.7. The
maximum of noisy values is too high, and Q-learning learns that; here the noise of the choice and
that of the value are independent. As in recparams_rl/learners/q_learning.py only actions tried
before count: where the table that is asked has not seen the other one's choice, the chooser's own
value stands in.

The coin is a hash of the pair and of how often it was updated, so that a log in two batches, or on
any number of threads, gives the same tables.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.compiled import Compiled
from recparams_rl.learners.base import checked
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.numerics import learned_share, splitmix64
from recparams_rl.transitions import Transitions

_hash = Compiled(splitmix64)


class DoubleQLearning(TabularLearner):
    """Double Q-learning; the policy is epsilon-greedy on the combined, smoothed table.

    Attributes:
        q, visits: values and visits of both tables combined, which are published.
        both: the two tables, float32 (2, n_states, n_actions).
        counts: updates of each pair in each, int32, same shape.
    """

    algorithm: ClassVar[str] = "double_q_learning"

    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        super()._begin(arrays)
        shape = 2, self.space.n_states, N_ACTIONS
        if arrays is None:
            self.both = np.zeros(shape, dtype=np.float32)
            self.counts = np.zeros(shape, dtype=np.int32)
        else:
            self.both = checked(arrays, "both", np.float32, shape)
            self.counts = checked(arrays, "counts", np.int32, shape)

    def _update(self, part: Transitions) -> None:
        update(
            self.both,
            self.counts,
            part.state,
            part.action,
            part.reward,
            part.next_state,
            np.float32(self.hyperparameters.learning_rate),
            np.float32(self.hyperparameters.discount_factor),
        )
        states = np.unique(part.state)
        self.visits[states] = self.counts[:, states].sum(axis=0)
        self.q[states] = combine_tables(
            self.both[:, states], self.counts[:, states], self.hyperparameters.learning_rate
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        return super().arrays() | {"both": self.both, "counts": self.counts}


def combine_tables(
    q: NDArray[np.float32], counts: NDArray[np.int32], learning_rate: float
) -> NDArray[np.float32]:
    """Combines two tables into one that is biased as if it had had the updates of both.

    Tables begin at 0, so a value is the mean of its targets times
    ``1 - (1 - learning_rate) ** updates``. That factor is divided out, the tables are averaged by
    their updates, and the factor of the sum of updates is multiplied in.

    Args:
        q, counts: of two tables, shape (2, ..., n_actions).
        learning_rate: the step size they were learned with.

    Returns:
        float32 (..., n_actions).
    """
    learned = learned_share(counts, learning_rate)
    total = counts.sum(axis=0)
    seen = np.divide(q * counts, learned, out=np.zeros(q.shape), where=counts > 0).sum(axis=0)
    mean = np.divide(seen, total, out=np.zeros(total.shape), where=total > 0)
    table: NDArray[np.float32] = (mean * learned_share(total, learning_rate)).astype(np.float32)
    return table


@Compiled
def _coin(pair: np.int64, updates: np.int64) -> np.int64:
    """Returns 0 or 1: the top bit of a hash of both numbers."""
    x = np.uint64(pair) * np.uint64(0xD1B54A32D192ED03) + np.uint64(updates)
    return np.int64(_hash(x) >> np.uint64(63))


@Compiled
def update(
    q: NDArray[np.float32],
    counts: NDArray[np.int32],
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.float32],
    next_state: NDArray[np.int32],
    learning_rate: np.float32,
    discount_factor: np.float32,
) -> None:
    """Applies the update to every transition in order, in float32, in place.

    Args:
        q: two tables, float32 (2, n_states, n_actions).
        counts: updates of each pair in each so far, int32, same shape.
        state, action, reward, next_state: transitions, shape (m,); next_state is negative at the
            end of an episode.
        learning_rate, discount_factor: float32.
    """
    n_actions = q.shape[2]
    for i in range(state.shape[0]):
        s, a = np.int64(state[i]), np.int64(action[i])
        mine = _coin(s * n_actions + a, np.int64(counts[0, s, a]) + np.int64(counts[1, s, a]))
        other = 1 - mine
        target = reward[i]
        successor = next_state[i]
        if successor >= 0:
            best = -1
            for candidate in range(n_actions):
                if counts[mine, successor, candidate] > 0 and (
                    best < 0 or q[mine, successor, candidate] > q[mine, successor, best]
                ):
                    best = candidate
            if best >= 0:
                asked = other if counts[other, successor, best] > 0 else mine
                target += discount_factor * q[asked, successor, best]
        q[mine, s, a] += learning_rate * (target - q[mine, s, a])
        counts[mine, s, a] += 1
