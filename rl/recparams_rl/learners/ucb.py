"""Upper confidence bounds on a Q-table: untried actions first, then the highest bound.

    argmax_a Q(s, a) + confidence * sqrt(ln N(s) / n(s, a)),  unvisited actions first, in order

Auer, Cesa-Bianchi & Fischer, "Finite-time Analysis of the Multiarmed Bandit Problem", Machine
Learning 47 (2002), on the values of recparams_rl/learners/q_learning.py.

Within one version every state has one action, which is taken with certainty: propensities are 1,
and the log of such a version tells nothing about any other action unless the server explores
(setting `exploration`). A version moves on to the next action at the next training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.policy import LEARNED, RULE_BASED, GreedyTable, Policy
from recparams_rl.rules import rule_table
from recparams_rl.state import nearest_states


@dataclass(frozen=True)
class UcbHyperparameters(Hyperparameters):
    """Hyperparameters of UCB.

    Args:
        confidence: factor on the width, in units of reward, 0 or more.
    """

    confidence: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("confidence", self.confidence, 0, 1e6)


class Ucb(QLearning):
    """Q-learning whose policy takes the action with the highest upper confidence bound.

    In states without any visit the rules choose.
    """

    algorithm: ClassVar[str] = "ucb"
    Settings: ClassVar[type[Hyperparameters]] = UcbHyperparameters
    hyperparameters: UcbHyperparameters

    def publishing(
        self,
        states: NDArray[np.integer[Any]] | None = None,  # noqa: ARG002
        *,
        threads: int = 1,  # noqa: ARG002
    ) -> Callable[[], Policy]:
        seen = self._visited().by_state() > 0
        choice = choose(self.q, self.visits, self.hyperparameters.confidence)
        serving = self.serving_space
        learned = nearest_states(self.space, serving)
        actions = np.where(seen[learned], choice[learned], rule_table(serving)).astype(np.uint8)
        sources = np.where(seen, LEARNED, RULE_BASED).astype(np.uint8)[learned]
        policy = GreedyTable(serving, actions.tobytes(), sources.tobytes(), self.epsilon)
        return lambda: policy


def choose(
    q: NDArray[np.float32], visits: NDArray[np.int32], confidence: float
) -> NDArray[np.uint8]:
    """Returns the action with the highest bound in every state, uint8 (n_states,).

    Args:
        q, visits: float32 and int32, (n_states, n_actions).
        confidence: factor on the width of the bounds.
    """
    n = visits.astype(np.float64)
    total = np.maximum(n.sum(axis=1, keepdims=True), 1.0)
    width = np.sqrt(np.log(total) / np.maximum(n, 1.0))
    bound = np.where(visits > 0, q + confidence * width, np.inf)
    # The first of equals, so of unvisited ones.
    actions: NDArray[np.uint8] = bound.argmax(axis=1).astype(np.uint8)
    return actions
