"""Boltzmann exploration: the better an action is, the likelier it is taken.

    pi(a|s) proportional to exp(advantage(s, a) / temperature)

Sutton & Barto, 2nd ed., section 2.8 (there with preferences for values); the advantages are those
of Q-learning's table, smoothed (rl/smoothing.py), in units of reward. Every action of a state has
its own propensity above 0, so a log of it can be evaluated without any other exploration. Where
there is nothing to go by the rules choose.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from rl.action import N_ACTIONS
from rl.learners.hyperparameters import Hyperparameters, check_range
from rl.learners.q_learning import QLearning
from rl.numerics import softmax
from rl.policy import (
    EXPLORATION,
    Arrays,
    Policy,
    States,
    Traits,
    check_bytes,
    check_epsilon,
    smooth_table,
)
from rl.state import StateSpace


@dataclass(frozen=True)
class BoltzmannHyperparameters(Hyperparameters):
    """Hyperparameters of Boltzmann exploration.

    Args:
        temperature: advantage, in units of reward, that makes an action e times as likely; above 0.
    """

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("temperature", self.temperature, 1e-6, 1e6)


@dataclass(frozen=True)
class ProbabilityTable(Policy):
    """A probability for every action in every state.

    Attributes:
        space, epsilon: as in `Policy`.
        probabilities: float32 (n_states, 27), rows sum to 1.
        sources: one byte a state: LEARNED, BORROWED or RULE_BASED.

    Raises:
        ValueError: if the arrays do not fit the space or are no probabilities.
    """

    kind: ClassVar[str] = "probability_table"
    space: StateSpace
    probabilities: NDArray[np.float32]
    sources: bytes
    epsilon: float

    def __post_init__(self) -> None:
        check_bytes(self.space, "sources", self.sources, EXPLORATION)
        check_epsilon(self.epsilon)
        shape = self.space.n_states, N_ACTIONS
        if self.probabilities.shape != shape or self.probabilities.dtype != np.float32:
            raise ValueError(f"probabilities must be float32 {shape}")
        total = self.probabilities.sum(axis=1, dtype=np.float64)
        if not ((self.probabilities >= 0).all() and (np.abs(total - 1.0) <= 1e-5).all()):
            raise ValueError("probabilities must be at least 0 and sum to 1")

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:  # noqa: ARG002
        rows = self.probabilities[state].astype(np.float64)
        normalised: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
        return normalised

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.frombuffer(self.sources, dtype=np.uint8)[state]

    def arrays(self) -> dict[str, NDArray[Any]]:
        sources = np.frombuffer(self.sources, dtype=np.uint8)
        return {"probabilities": self.probabilities, "sources": sources}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        return cls(space, arrays["probabilities"], arrays["sources"].tobytes(), epsilon)


class Boltzmann(QLearning):
    """Q-learning whose policy is the Boltzmann distribution over smoothed advantages."""

    algorithm: ClassVar[str] = "boltzmann"
    Settings: ClassVar[type[Hyperparameters]] = BoltzmannHyperparameters
    hyperparameters: BoltzmannHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (ProbabilityTable,)

    def publish(self) -> Policy:
        self._check_finite()
        table = smooth_table(
            self.space,
            self.q,
            self.visits,
            learning_rate=self.hyperparameters.learning_rate,
            smoothing=self.smoothing,
        )
        probabilities = softmax(table.advantage / np.float32(self.hyperparameters.temperature))
        unknown = np.flatnonzero(~table.known)
        probabilities[unknown] = 0.0
        probabilities[unknown, table.rules[unknown]] = 1.0
        return ProbabilityTable(self.space, probabilities, table.sources.tobytes(), self.epsilon)
