"""What benchmarks/peers.py compares, behind one interface: ours and the dict agent."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.dict_agent import MOVES, DictAgent, Key, key
from rl.action import N_ACTIONS
from rl.hyperparameters import Hyperparameters
from rl.policy import GreedyTable, publish
from rl.q_learning import train
from rl.smoothing import Smoothing
from rl.state import Context, StateSpace
from rl.transitions import TERMINAL, Interactions, Transitions, prepare

SPACE = StateSpace()
SETTINGS = Hyperparameters()
EPSILON = 0.05
CONTEXTS = [SPACE.decode(context)[1] for context in range(SPACE.n_contexts)]
MICROSECONDS = 1_000_000
DICE = random.Random(1)

Question = tuple[list[float], Context]
"""Five scores and a context."""


@dataclass(frozen=True)
class Log:
    """Columns of n logged interactions, by time; traits (n, 5), the others (n,)."""

    person: NDArray[np.int64]
    time: NDArray[np.int64]
    traits: NDArray[np.float64]
    context: NDArray[np.int64]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    propensity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.context)

    def questions(self) -> list[Question]:
        """What was known when each decision was made: traits and context."""
        contexts = [CONTEXTS[one] for one in self.context.tolist()]
        return list(zip(self.traits.tolist(), contexts, strict=True))


class System:
    """Learns a log, then decides. `prepare` and `encode` bring their input into its own form.

    Args:
        name: for the tables.
        needs: the distribution, which imports under the same name; empty where none is needed.
    """

    def __init__(self, name: str, needs: str = "") -> None:
        self.name = name
        self.needs = needs

    def prepare(self, log: Log) -> None:
        """Brings the log into the form that `learn` takes."""
        self.inputs = [self.encode(*question) for question in log.questions()]
        self.actions = log.action.tolist()
        self.rewards = log.reward.tolist()

    def encode(self, traits: Sequence[float], context: Context) -> Any:
        """Brings a question into the form that `decide` takes."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets what was learned."""
        raise NotImplementedError

    def learn(self) -> None:
        """Learns the log once."""
        raise NotImplementedError

    def decide(self, ready: Any) -> int:
        """An action, explored for."""
        raise NotImplementedError


def transitions(log: Log) -> Transitions:
    """The log encoded, chained into episodes and sorted by cell, as the trainer does."""
    interactions = Interactions(
        id=np.arange(len(log)),
        user=log.person,
        time=log.time * MICROSECONDS,
        state=(SPACE.cells(log.traits) * SPACE.n_contexts + log.context).astype(np.int32),
        action=log.action.astype(np.uint8),
        reward=log.reward,
    )
    return prepare(
        interactions,
        n_contexts=SPACE.n_contexts,
        session_gap=int(SETTINGS.session_gap_seconds * MICROSECONDS),
        settled_before=np.iinfo(np.int64).max,
        min_interactions=1,
    ).transitions


class Recparams(System):
    """Ours: Q-learning on one thread, and the lookup in a published policy."""

    policy: GreedyTable

    def __init__(self) -> None:
        super().__init__("recparams")
        self.q = np.empty((SPACE.n_states, N_ACTIONS), dtype=np.float32)
        self.visits = np.empty((SPACE.n_states, N_ACTIONS), dtype=np.int32)

    def prepare(self, log: Log) -> None:
        self.transitions = transitions(log)

    def encode(self, traits: Sequence[float], context: Context) -> int:
        return SPACE.cell(traits) * SPACE.n_contexts + SPACE.context(context)

    def reset(self) -> None:
        # Written over rather than allocated: the trainer too goes on from a table in memory.
        self.q[:] = 0
        self.visits[:] = 0

    def learn(self) -> None:
        train(self.q, self.visits, self.transitions, SETTINGS, states_per_cell=SPACE.n_contexts)

    def publish(self) -> None:
        """Makes the policy that decisions look up."""
        self.policy = publish(
            SPACE,
            self.q,
            self.visits,
            learning_rate=SETTINGS.learning_rate,
            epsilon=EPSILON,
            smoothing=Smoothing(),
        )

    def decide(self, ready: int) -> int:
        if DICE.random() < self.policy.epsilon:
            return int(DICE.random() * N_ACTIONS)
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
        if DICE.random() < EPSILON:
            return int(DICE.random() * N_ACTIONS)
        return self._number[self.agent.choose(ready)]
