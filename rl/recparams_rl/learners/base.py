"""Interface of the algorithms: a learner is given transitions and publishes a policy."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.policy import Policy
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace, serving_space
from recparams_rl.transitions import Transitions

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Statistics:
    """Statistics of a learner's values and of the transitions it was given.

    Attributes:
        total_updates: transitions learned, in all its life.
        total_states, total_state_actions: pairs it has visited; 0 if it keeps none.
        avg_q_value, max_q_value: over visited pairs, 0 if there are none.
        coverage: visited states as a share of all.
        largest_q: largest absolute value, or None if it learns no values.
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

    Policies are published on `serving_space`, which may have finer bins than the space of learning.

    Learning a log in two batches gives what learning it in one gives, unless an algorithm says
    otherwise.

    Args:
        space: the state space.
        hyperparameters: an instance of `Settings`.
        smoothing: of Q-tables when they are published, and the bins of serving for all.
        arrays: those of an earlier learner, to go on from; they are modified in place.

    Raises:
        ValueError: if the arrays do not fit.
    """

    algorithm: ClassVar[str]
    Settings: ClassVar[type[Hyperparameters]] = Hyperparameters
    needs_traits: ClassVar[bool] = False
    """True if transitions must have their traits."""
    learns_in_parts: ClassVar[bool] = True
    """False if cells must not be learned in several batches, one range of them after the other."""
    policy_types: ClassVar[tuple[type[Policy], ...]]
    """Types of policy that `publish` returns."""

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
        self.serving_space = serving_space(space, self.smoothing.serving_bins)
        self._begin(arrays)

    @abstractmethod
    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        """Takes over arrays of an earlier learner, or makes new ones."""

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
        """Returns the policy to serve. Raises ValueError if a learned value is not finite."""

    def publishing(
        self,
        states: NDArray[np.integer[Any]] | None = None,  # noqa: ARG002
        *,
        threads: int = 1,  # noqa: ARG002
    ) -> Callable[[], Policy]:
        """Returns a function that makes the policy of what was learned so far.

        It may be called in another thread while this learner goes on.

        Args:
            states: state indices of `serving_space`, (n,), which spare time: the policy may choose
                otherwise elsewhere, and explore otherwise; None for that of `publish`.
            threads: most that may be used; the policy is the same for any number.

        Raises:
            ValueError: if a learned value is not finite.
        """
        policy = self.publish()
        return lambda: policy

    @abstractmethod
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the arrays, by name, from which a learner of this type can go on."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """Returns statistics of everything learned so far."""

    @property
    def epsilon(self) -> float:
        """Exploration rate to serve with after the transitions learned so far, 0 to 1."""
        return self.hyperparameters.epsilon(self.statistics().total_updates)


def checked(
    arrays: Mapping[str, NDArray[Any]], name: str, dtype: type, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Returns a named array of a learner. Raises ValueError unless it has this dtype and shape."""
    array = arrays.get(name)
    if array is None or array.dtype != np.dtype(dtype) or array.shape != shape:
        found = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, not {found}")
    return array
