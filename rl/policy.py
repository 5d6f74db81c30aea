"""What is served: one action for every state, and how it was arrived at. Immutable."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl.action import N_ACTIONS
from rl.rules import rule_table
from rl.smoothing import Smoothing, smooth
from rl.state import StateSpace

LEARNED, BORROWED, RULE_BASED, EXPLORATION = range(4)
"""Sources of a choice; a policy holds the first three."""

SOURCES = "learned", "borrowed", "rule_based", "exploration"
"""Their names."""

OWN_VISITS = 10
"""Visits of a state from which its choice counts as learned rather than borrowed."""

LEAST_EVIDENCE = 1.0
"""Kernel-weighted visits of similar people below which the rules answer."""


@dataclass(frozen=True)
class Policy:
    """A greedy policy with the exploration it asks for.

    Attributes:
        space: the state space it was built for.
        actions: one byte a state, its greedy action, 0 to 26.
        sources: one byte a state: LEARNED, BORROWED or RULE_BASED.
        epsilon: probability of a uniformly random action when exploration is on, 0 to 1.

    Raises:
        ValueError: where the arrays do not fit the space or hold impossible values.
    """

    space: StateSpace
    actions: bytes
    sources: bytes
    epsilon: float

    def __post_init__(self) -> None:
        for name, column, top in (
            ("actions", self.actions, N_ACTIONS),
            ("sources", self.sources, EXPLORATION),
        ):
            if len(column) != self.space.n_states:
                raise ValueError(f"{name} has {len(column)} states, not {self.space.n_states}")
            highest = int(np.frombuffer(column, dtype=np.uint8).max())
            if highest >= top:
                raise ValueError(f"{name} has a value of {highest}, above {top - 1}")
        if not 0.0 <= self.epsilon <= 1.0:
            raise ValueError(f"epsilon must be from 0 to 1, not {self.epsilon}")


def rule_based_policy(space: StateSpace, epsilon: float) -> Policy:
    """The rules as a policy."""
    return Policy(space, rule_table(space).tobytes(), bytes([RULE_BASED]) * space.n_states, epsilon)


def publish(
    space: StateSpace,
    q: NDArray[np.float32],
    visits: NDArray[np.int32],
    *,
    learning_rate: float,
    epsilon: float,
    smoothing: Smoothing,
) -> Policy:
    """The greedy policy of a table, smoothed.

    Args:
        space: the state space.
        q, visits: float32 and int32, shape (n_states, n_actions).
        learning_rate: the step size `q` was learned with.
        epsilon: the exploration to ask for.
        smoothing: how to borrow.
    """
    rules = rule_table(space)
    smoothed = smooth(space, q, visits, rules, learning_rate=learning_rate, smoothing=smoothing)
    known = np.repeat(smoothed.evidence >= LEAST_EVIDENCE, space.n_contexts)
    actions = np.where(known, smoothed.advantage.argmax(axis=1).astype(np.uint8), rules)
    own = visits.sum(axis=1) >= OWN_VISITS
    sources = np.where(own, LEARNED, np.where(known, BORROWED, RULE_BASED)).astype(np.uint8)
    return Policy(space, actions.tobytes(), sources.tobytes(), epsilon)


def propensity(epsilon: float, *, greedy: bool) -> float:
    """Probability with which an epsilon-greedy choice gives the greedy, or one other, action."""
    return epsilon / N_ACTIONS + (1.0 - epsilon if greedy else 0.0)
