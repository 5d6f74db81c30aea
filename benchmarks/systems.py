"""What benchmarks/peers.py compares, behind one interface: ours and the dict agent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.dict_agent import MOVES, DictAgent, Key, key
from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.policy import GreedyTable, publish
from recparams_rl.smoothing import Smoothing, Visited
from recparams_rl.state import Context
from recparams_rl.transitions import TERMINAL
from recparams_simulation.compare.logs import SPACE, Log, transitions
from recparams_simulation.compare.systems import RNG, System

SETTINGS = Hyperparameters()
EPSILON = 0.05


class Recparams(System):
    """Ours: Q-learning on one thread, and the lookup in a published policy."""

    policy: GreedyTable

    def __init__(self, smoothing: Smoothing) -> None:
        super().__init__("recparams")
        self.learner = QLearning(SPACE, SETTINGS, smoothing=smoothing)
        self.serving = self.learner.serving_space

    def prepare(self, log: Log) -> None:
        self.transitions = transitions(log)

    def encode(self, traits: Sequence[float], context: Context) -> int:
        return self.serving.index(traits, context)

    def reset(self) -> None:
        # Written over rather than allocated: the trainer too goes on from a table in memory.
        for table in self.learner.arrays().values():
            table[:] = 0

    def learn(self) -> None:
        self.learner.learn(self.transitions)

    def publish(self) -> None:
        """Makes the policy that decisions look up."""
        self.policy = publish(
            SPACE,
            Visited.of(self.learner.q, self.learner.visits, self.learner.rewards),
            learning_rate=SETTINGS.learning_rate,
            epsilon=EPSILON,
            smoothing=self.learner.smoothing,
        )

    def decide(self, ready: int) -> int:
        if RNG.random() < self.policy.epsilon:
            return int(RNG.random() * N_ACTIONS)
        return self.policy.actions[ready]


class DictOfDicts(System):
    """The reference, on the transitions that ours learns and in their order."""

    def __init__(self) -> None:
        super().__init__("dict of dicts")
        self._number = {move: number for number, move in enumerate(MOVES)}

    def prepare(self, log: Log) -> None:
        steps = transitions(log)
        keys: dict[int, Key] = {}
        for state in np.unique(steps.state).tolist():
            bins, context = SPACE.decode(state)
            keys[state] = (*bins, context.content_type, context.mood, context.time_of_day)
        self.steps = [
            (keys[state], MOVES[action], reward, None if to == TERMINAL else keys[to])
            for state, action, reward, to in zip(
                steps.state.tolist(),
                steps.action.tolist(),
                steps.reward.tolist(),
                steps.next_state.tolist(),
                strict=True,
            )
        ]

    def encode(self, traits: Sequence[float], context: Context) -> Any:
        return key(traits, context)

    def reset(self) -> None:
        self.agent = DictAgent(SETTINGS.learning_rate, SETTINGS.discount_factor)

    def learn(self) -> None:
        for step in self.steps:
            self.agent.update(*step)

    def decide(self, ready: Any) -> int:
        if RNG.random() < EPSILON:
            return int(RNG.random() * N_ACTIONS)
        return self._number[self.agent.choose(ready)]
