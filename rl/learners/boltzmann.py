"""Boltzmann exploration: the better an action is, the likelier it is taken.

    pi(a|s) proportional to exp(advantage(s, a) / temperature)

Sutton & Barto, 2nd ed., section 2.8 (there with preferences for values); the advantages are those
of Q-learning's table, smoothed (rl/smoothing.py), in units of reward. Every action of a state has
its own propensity above 0, so a log of it can be evaluated without any other exploration.
"""

from dataclasses import dataclass, replace
from functools import cached_property
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
    GreedyTable,
    Policy,
    States,
    Traits,
    check_bytes,
    check_epsilon,
    choice_sources,
    rule_based_policy,
)
from rl.rules import rule_table
from rl.smoothing import smooth
from rl.state import StateSpace, nearest_states


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
        learned_space: the space of the table, with bins of equal width.
        probabilities: float32 (its n_states, 27), rows sum to 1.
        sources: one byte a state of it: LEARNED, BORROWED or RULE_BASED.

    Raises:
        ValueError: if the arrays do not fit the space or are no probabilities.
    """

    kind: ClassVar[str] = "probability_table"
    space: StateSpace
    learned_space: StateSpace
    probabilities: NDArray[np.float32]
    sources: bytes
    epsilon: float

    def __post_init__(self) -> None:
        check_bytes(self.learned_space, "sources", self.sources, EXPLORATION)
        check_epsilon(self.epsilon)
        shape = self.learned_space.n_states, N_ACTIONS
        if self.probabilities.shape != shape or self.probabilities.dtype != np.float32:
            raise ValueError(f"probabilities must be float32 {shape}")
        total = self.probabilities.sum(axis=1, dtype=np.float64)
        if not ((self.probabilities >= 0).all() and (np.abs(total - 1.0) <= 1e-5).all()):
            raise ValueError("probabilities must be at least 0 and sum to 1")

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:  # noqa: ARG002
        rows = self.probabilities[self._learned[state]].astype(np.float64)
        normalised: NDArray[np.float64] = rows / rows.sum(axis=1, keepdims=True)
        return normalised

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.frombuffer(self.sources, dtype=np.uint8)[self._learned[state]]

    @cached_property
    def _learned(self) -> NDArray[np.int32]:
        """The state of the table for each state."""
        return nearest_states(self.learned_space, self.space).astype(np.int32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        sources = np.frombuffer(self.sources, dtype=np.uint8)
        bins = np.array(self.learned_space.bins)
        return {"probabilities": self.probabilities, "sources": sources, "bins": bins}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        learned = replace(space, bins=int(arrays["bins"]), cuts=())
        return cls(space, learned, arrays["probabilities"], arrays["sources"].tobytes(), epsilon)


class Boltzmann(QLearning):
    """Q-learning whose policy is the Boltzmann distribution over smoothed advantages."""

    algorithm: ClassVar[str] = "boltzmann"
    Settings: ClassVar[type[Hyperparameters]] = BoltzmannHyperparameters
    hyperparameters: BoltzmannHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (ProbabilityTable, GreedyTable)

    def publish(self) -> Policy:
        self._check_finite()
        if not self.visits.any():
            return rule_based_policy(self.serving_space, self.epsilon)
        rules = rule_table(self.space)
        smoothed = smooth(
            self.space,
            self.q,
            self.visits,
            self.rewards,
            rules,
            learning_rate=self.hyperparameters.learning_rate,
            smoothing=self.smoothing,
        )
        advantages = smoothed.advantages(self.space, rules)
        probabilities = softmax(advantages / np.float32(self.hyperparameters.temperature))
        differs = advantages.argmax(axis=1) != rules
        sources = choice_sources(self.space, self.visits, self.space, differs).tobytes()
        return ProbabilityTable(
            self.serving_space, self.space, probabilities, sources, self.epsilon
        )
