"""Expected SARSA: the target is the expected value under an epsilon-greedy policy.

    Q(s, a) <- Q(s, a) + learning_rate * [r + discount_factor * V(s') - Q(s, a)]
    with V(s') = sum_a' pi(a'|s') Q(s', a')

van Seijen, van Hasselt, Whiteson & Wiering, "A Theoretical and Empirical Analysis of Expected
Sarsa", ADPRL 2009; Sutton & Barto, 2nd ed., section 6.6. pi is greedy but for `target_epsilon`,
spread evenly; as in recparams_rl/learners/q_learning.py it runs over the actions of s' that have
been updated before. With a `target_epsilon` of 0 this is Q-learning.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.compiled import Compiled
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.transitions import Transitions


@dataclass(frozen=True)
class ExpectedSarsaHyperparameters(Hyperparameters):
    """Hyperparameters of expected SARSA.

    Args:
        target_epsilon: probability of a random action under the target policy, 0 to 1.
    """

    target_epsilon: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("target_epsilon", self.target_epsilon, 0, 1)


class ExpectedSarsa(TabularLearner):
    """Expected SARSA; the policy is epsilon-greedy on the smoothed table."""

    algorithm: ClassVar[str] = "expected_sarsa"
    Settings: ClassVar[type[Hyperparameters]] = ExpectedSarsaHyperparameters
    hyperparameters: ExpectedSarsaHyperparameters

    def _update(self, part: Transitions) -> None:
        update(
            self.q,
            self.visits,
            part.state,
            part.action,
            part.reward,
            part.next_state,
            np.float32(self.hyperparameters.learning_rate),
            np.float32(self.hyperparameters.discount_factor),
            np.float32(self.hyperparameters.target_epsilon),
        )


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
    target_epsilon: np.float32,
) -> None:
    """Applies the update to every transition in order, in float32, in place.

    Args:
        q, visits, state, action, reward, next_state, learning_rate, discount_factor: as in
            `recparams_rl.learners.q_learning.update`.
        target_epsilon: float32, 0 to 1.
    """
    n_actions = q.shape[1]
    for i in range(state.shape[0]):
        target = reward[i]
        successor = next_state[i]
        if successor >= 0:
            tried = 0
            total = np.float32(0.0)
            highest = np.float32(-np.inf)
            for candidate in range(n_actions):
                if visits[successor, candidate] > 0:
                    value = q[successor, candidate]
                    tried += 1
                    total += value
                    highest = max(highest, value)
            if tried:
                mean = total / np.float32(tried)
                target += discount_factor * (highest + target_epsilon * (mean - highest))
        s = state[i]
        a = action[i]
        q[s, a] += learning_rate * (target - q[s, a])
        visits[s, a] += 1
