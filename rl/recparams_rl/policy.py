"""Policies, and the sources of their choices."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.choice import cautious_actions, sampled_actions
from recparams_rl.draws import Draws
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import Smoothed, Smoothing, Visited, smooth
from recparams_rl.state import StateSpace, nearest_states, serving_space

States = NDArray[np.integer[Any]]
Traits = NDArray[np.floating[Any]]
Arrays = Mapping[str, NDArray[Any]]

LEARNED, BORROWED, RULE_BASED, EXPLORATION = range(4)
"""Sources of a choice; a policy holds the first three."""

SOURCES = "learned", "borrowed", "rule_based", "exploration"
"""Their names."""

_OF_DRAWS = "draws_"
MIN_OWN_VISITS = 10
"""Visits of a state from which its choice counts as learned rather than borrowed."""


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
        draws: actions to explore with, in place of uniformly random ones; or None.

    Raises:
        ValueError: if the arrays do not fit the space or hold impossible values.
    """

    kind: ClassVar[str] = "greedy_table"
    space: StateSpace
    actions: bytes
    sources: bytes
    epsilon: float
    draws: Draws | None = None

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
        own = {"actions": self.greedy, "sources": sources}
        if self.draws is None:
            return own
        return own | {f"{_OF_DRAWS}{name}": one for name, one in self.draws.arrays().items()}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        of_draws = {
            name.removeprefix(_OF_DRAWS): one
            for name, one in arrays.items()
            if name.startswith(_OF_DRAWS)
        }
        draws = Draws.from_arrays(space, of_draws) if of_draws else None
        return cls(space, arrays["actions"].tobytes(), arrays["sources"].tobytes(), epsilon, draws)

    def exploring_dist(self, state: States) -> NDArray[np.float64]:
        """Returns probabilities of all actions with exploration, by draws and `epsilon`, (n, 27).

        Args:
            state: state indices, (n,).
        """
        dist = self.action_dist(state, np.empty((0, 0)))
        if self.draws is not None:
            dist = self.draws.dist(state, self.greedy[state])
        return with_epsilon(dist, self.epsilon)


def rule_based_policy(space: StateSpace, epsilon: float) -> GreedyTable:
    """Returns the hand-written rules as a policy."""
    sources = bytes([RULE_BASED]) * space.n_states
    return GreedyTable(space, rule_table(space).tobytes(), sources, epsilon)


def publish(
    space: StateSpace,
    visited: Visited,
    *,
    learning_rate: float,
    epsilon: float,
    smoothing: Smoothing,
    draw: Callable[[Smoothed, NDArray[np.uint8]], NDArray[np.uint8]] = sampled_actions,
    states: States | None = None,
    threads: int = 1,
) -> GreedyTable:
    """Returns the greedy policy of a smoothed table on the space of serving, or else the rules.

    Args:
        space: the space of learning.
        visited: the pairs of the table that were visited.
        learning_rate: the step size the table was learned with.
        epsilon: exploration rate of the policy, 0 to 1.
        smoothing: parameters of the smoothing.
        draw: returns draws to explore by, as `recparams_rl.choice.sampled_actions` does.
        states: the states of serving that are asked for, which spares time: others are left to the
            rules, and there are no draws; None for all.
        threads: most that may be used; the policy is the same for any number.
    """
    serving = serving_space(space, smoothing.serving_bins)
    if not len(visited.visits):
        return rule_based_policy(serving, epsilon)
    rules, learned_rules = rule_table(serving), rule_table(space)
    smoothed = smooth(
        space, visited, learned_rules, learning_rate=learning_rate, smoothing=smoothing
    )
    caution = smoothing.caution_after(visited.updates)
    actions = cautious_actions(smoothed, serving, rules, caution, states, threads=threads)
    sources = choice_sources(space, visited.by_state(), serving, actions != rules)
    if states is not None:
        return GreedyTable(serving, actions.tobytes(), sources.tobytes(), epsilon)
    # The draws of other actions are those of the cells of learning, the greedy one is not.
    usual = actions
    if serving != space:
        usual = cautious_actions(smoothed, space, learned_rules, caution, threads=threads)
    draws = Draws.of(space, serving, draw(smoothed, learned_rules), usual)
    return GreedyTable(serving, actions.tobytes(), sources.tobytes(), epsilon, draws)


def choice_sources(
    space: StateSpace,
    visits: NDArray[np.int64],
    serving: StateSpace,
    differs: NDArray[np.bool_],
) -> NDArray[np.uint8]:
    """Returns the source of the choice in each state of serving, uint8 (n_states,).

    LEARNED where the state of learning has `MIN_OWN_VISITS`; elsewhere BORROWED, or RULE_BASED
    where the choice is that of the rules.

    Args:
        space: the space of learning.
        visits: updates of each state of learning, int64 (n_states,).
        serving: the space of serving.
        differs: True where the choice is not that of the rules, bool (n_states,).
    """
    learned = (visits >= MIN_OWN_VISITS)[nearest_states(space, serving)]
    borrowed = np.where(differs, BORROWED, RULE_BASED)
    return np.where(learned, LEARNED, borrowed).astype(np.uint8)


def draw(rng: np.random.Generator, dist: NDArray[np.float64]) -> NDArray[np.int64]:
    """Draws an action for each of n people, int64 (n,), from probabilities of shape (n, 27)."""
    # Counting what lies below a point avoids a last bin that rounding makes a little short.
    below = dist.cumsum(axis=1)[:, :-1] <= rng.random(len(dist))[:, None]
    drawn: NDArray[np.int64] = below.sum(axis=1)
    return drawn


def with_epsilon(dist: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Returns probabilities mixed with uniformly random actions, of the same shape (n, 27).

    Args:
        dist: probabilities of all actions.
        epsilon: probability of a random action, 0 to 1.
    """
    return (1.0 - epsilon) * dist + epsilon / N_ACTIONS


def propensity(epsilon: float, *, greedy: bool) -> float:
    """Returns the propensity of the greedy action, or of one other, under epsilon-greedy."""
    return epsilon / N_ACTIONS + (1.0 - epsilon if greedy else 0.0)
