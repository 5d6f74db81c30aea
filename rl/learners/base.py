"""What every algorithm is: a learner takes transitions and gives back a policy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rl.learners.hyperparameters import Hyperparameters
from rl.policy import Policy
from rl.smoothing import Smoothing
from rl.state import StateSpace
from rl.transitions import Transitions

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Statistics:
    """What a learner has learned from.

    Attributes:
        total_updates: transitions learned, in all its life.
        total_states, total_state_actions: pairs it has visited; 0 where it keeps none.
        avg_q_value, max_q_value: over visited pairs, 0 where there are none.
        coverage: visited states as a share of all.
        largest_q: largest absolute value, or None where values are not what it learns.
    """

    total_updates: int
    total_states: int = 0
    total_state_actions: int = 0
    avg_q_value: float = 0.0
    max_q_value: float = 0.0
    coverage: float = 0.0
    largest_q: float | None = None


class Learner(ABC):
    """Learns a policy from logged transitions, in batches, each transition once.

    Learning a log in two batches gives what learning it in one gives, unless an algorithm says
    otherwise.

    Args:
        space: the state space.
        hyperparameters: an instance of `Settings`.
        smoothing: how tables borrow from similar people; others take no notice.
        arrays: what `arrays` of an earlier learner gave, to go on from; it becomes this one's.

    Raises:
        ValueError: where the arrays do not fit.
    """

    algorithm: ClassVar[str]
    Settings: ClassVar[type[Hyperparameters]] = Hyperparameters
    needs_traits: ClassVar[bool] = False
    """Whether transitions must have their scores."""
    policy_types: ClassVar[tuple[type[Policy], ...]]
    """What `publish` may give."""

    def __init__(
        self,
        space: StateSpace,
        hyperparameters: Hyperparameters,
        *,
        smoothing: Smoothing | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        self.space = space
        self.hyperparameters = hyperparameters
        self.smoothing = smoothing or Smoothing()
        self._begin(arrays)

    @abstractmethod
    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        """Takes over arrays, or begins from nothing."""

    @abstractmethod
    def learn(
        self, transitions: Transitions, *, threads: int = 1, on_progress: OnProgress | None = None
    ) -> None:
        """Learns transitions that are sorted by (personality cell, time, id).

        Args:
            transitions: columns; their `traits` where the algorithm `needs_traits`.
            threads: most that may be used; the result is the same for any number.
            on_progress: called, from any thread, with the number of transitions just learned.
        """

    @abstractmethod
    def publish(self) -> Policy:
        """The policy to serve. Raises ValueError where what was learned is not finite."""

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that is needed to go on learning."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """What was learned from."""

    @property
    def epsilon(self) -> float:
        """The exploration to ask for after what was learned."""
        return self.hyperparameters.epsilon(self.statistics().total_updates)


def checked(
    arrays: Mapping[str, NDArray[Any]], name: str, dtype: type, shape: tuple[int, ...]
) -> NDArray[Any]:
    """An array of a learner to go on from. Raises ValueError where it does not fit."""
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != shape:
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, not {found}")
    return array
