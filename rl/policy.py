"""Policies, and the sources of their choices."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from rl.action import N_ACTIONS
from rl.rules import rule_table
from rl.smoothing import Smoothing, smooth
from rl.state import StateSpace

States = NDArray[np.integer[Any]]
Traits = NDArray[np.floating[Any]]
Arrays = Mapping[str, NDArray[Any]]

LEARNED, BORROWED, RULE_BASED, EXPLORATION = range(4)
"""Sources of a choice; a policy holds the first three."""

SOURCES = "learned", "borrowed", "rule_based", "exploration"
"""Their names."""

MIN_OWN_VISITS = 10
"""Visits of a state from which its choice counts as learned rather than borrowed."""

MIN_EVIDENCE = 1.0
"""Kernel-weighted visits of similar people below which the rules answer."""


class Policy(ABC):
    """Probabilities of the actions in each state. Immutable.

    Attributes:
        kind: name of the type of policy, with which it is stored.
        space: the state space it was built for.
        epsilon: probability of a uniformly random action when exploration is on, 0 to 1.
        needs_traits: True if it depends on trait scores and not on states alone.
    """

    kind: ClassVar[str]
    needs_traits: ClassVar[bool] = False
    space: StateSpace
    epsilon: float

    @abstractmethod
    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:
        """Returns probabilities of all actions for n people, without `epsilon`, float64 (n, 27).

        Args:
            state: state indices, int32 (n,), 0 to n_states - 1.
            traits: trait scores of the people, 0 to 100, shape (n, 5).
        """

    def likeliest(self, state: States, traits: Traits) -> NDArray[np.uint8]:
        """Returns the likeliest action, the first of equals, uint8 (n,), as `action_dist`."""
        actions: NDArray[np.uint8] = self.action_dist(state, traits).argmax(axis=1).astype(np.uint8)
        return actions

    @abstractmethod
    def sources_of(self, state: States) -> NDArray[np.uint8]:
        """Returns the source of the likeliest action of each state, LEARNED to RULE_BASED, (n,)."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the arrays, by name, from which `from_arrays` makes this policy again."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        """Makes a policy of its arrays. Raises ValueError or KeyError if they do not fit."""


def check_epsilon(epsilon: float) -> None:
    """Raises ValueError unless epsilon is a probability."""
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"epsilon must be from 0 to 1, not {epsilon}")


def check_bytes(space: StateSpace, name: str, column: bytes, top: int) -> None:
    """Raises ValueError unless a column has one byte below `top` for each state."""
    if len(column) != space.n_states:
        raise ValueError(f"{name} has {len(column)} states, not {space.n_states}")
    highest = int(np.frombuffer(column, dtype=np.uint8).max())
    if highest >= top:
        raise ValueError(f"{name} has a value of {highest}, above {top - 1}")


@dataclass(frozen=True)
class GreedyTable(Policy):
    """Deterministic policy with one action for every state.

    Attributes:
        space, epsilon: as in `Policy`.
        actions: one byte a state, its greedy action, 0 to 26.
        sources: one byte a state: LEARNED, BORROWED or RULE_BASED.

    Raises:
        ValueError: if the arrays do not fit the space or hold impossible values.
    """

    kind: ClassVar[str] = "greedy_table"
    space: StateSpace
    actions: bytes
    sources: bytes
    epsilon: float

    def __post_init__(self) -> None:
        check_bytes(self.space, "actions", self.actions, N_ACTIONS)
        check_bytes(self.space, "sources", self.sources, EXPLORATION)
        check_epsilon(self.epsilon)

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:  # noqa: ARG002
        chosen = np.zeros((len(state), N_ACTIONS))
        chosen[np.arange(len(state)), self.greedy[state]] = 1.0
        return chosen

    def likeliest(self, state: States, traits: Traits) -> NDArray[np.uint8]:  # noqa: ARG002
        return self.greedy[state]

    @property
    def greedy(self) -> NDArray[np.uint8]:
        """Greedy action of every state, uint8 (n_states,)."""
        return np.frombuffer(self.actions, dtype=np.uint8)

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.frombuffer(self.sources, dtype=np.uint8)[state]

    def arrays(self) -> dict[str, NDArray[Any]]:
        sources = np.frombuffer(self.sources, dtype=np.uint8)
        return {"actions": self.greedy, "sources": sources}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        return cls(space, arrays["actions"].tobytes(), arrays["sources"].tobytes(), epsilon)


def rule_based_policy(space: StateSpace, epsilon: float) -> GreedyTable:
    """Returns the hand-written rules as a policy."""
    sources = bytes([RULE_BASED]) * space.n_states
    return GreedyTable(space, rule_table(space).tobytes(), sources, epsilon)


@dataclass(frozen=True)
class SmoothedTable:
    """Smoothed Q-table with the rules' actions and the source of each state's choice.

    Attributes:
        advantage: of each action, comparable within a state, float32 (n_states, n_actions).
        known: True where similar people have `MIN_EVIDENCE` visits, bool (n_states,).
        rules: the rules' action, uint8 (n_states,).
        sources: LEARNED, BORROWED or RULE_BASED, uint8 (n_states,).
    """

    advantage: NDArray[np.float32]
    known: NDArray[np.bool_]
    rules: NDArray[np.uint8]
    sources: NDArray[np.uint8]


def smooth_table(
    space: StateSpace,
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    *,
    learning_rate: float,
    smoothing: Smoothing,
) -> SmoothedTable:
    """Smooths a Q-table.

    Args:
        space: the state space.
        q, visits: float32 and int32, shape (n_states, n_actions).
        learning_rate: the step size `q` was learned with.
        smoothing: strength of the smoothing.
    """
    rules = rule_table(space)
    found = smooth(space, q, visits, rules, learning_rate=learning_rate, smoothing=smoothing)
    known = np.repeat(found.evidence >= MIN_EVIDENCE, space.n_contexts)
    own = visits.sum(axis=1) >= MIN_OWN_VISITS
    sources = np.where(own, LEARNED, np.where(known, BORROWED, RULE_BASED)).astype(np.uint8)
    return SmoothedTable(found.advantage, known, rules, sources)


def publish(
    space: StateSpace,
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    *,
    learning_rate: float,
    epsilon: float,
    smoothing: Smoothing,
) -> GreedyTable:
    """Returns the greedy policy of a smoothed table; arguments as in `smooth_table`.

    Args:
        epsilon: exploration rate of the policy, 0 to 1.
    """
    table = smooth_table(space, q, visits, learning_rate=learning_rate, smoothing=smoothing)
    best = table.advantage.argmax(axis=1).astype(np.uint8)
    actions = np.where(table.known, best, table.rules)
    return GreedyTable(space, actions.tobytes(), table.sources.tobytes(), epsilon)


def draw(rng: np.random.Generator, dist: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draws an action for each of n people, int64 (n,), from probabilities of shape (n, 27)."""
    # Counting what lies below a point avoids a last bin that rounding makes a little short.
    below = dist.cumsum(axis=1)[:, :-1] <= rng.random(len(dist))[:, None]
    drawn: NDArray[np.int64] = below.sum(axis=1)
    return drawn


def propensity(epsilon: float, *, greedy: bool) -> float:
    """Returns the propensity of the greedy action, or of one other, under epsilon-greedy."""
    return epsilon / N_ACTIONS + (1.0 - epsilon if greedy else 0.0)
