"""Interface of the systems compared; the learners, the rules and a random policy."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.base import Learner
from recparams_rl.learners.deep import DeepHyperparameters
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.packing import pack
from recparams_rl.policy import GreedyTable, Policy, rule_based_policy
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import Context
from recparams_simulation.compare.logs import SPACE, Log, states, transitions

RNG = random.Random(1)  # noqa: S311 - not secrecy
ACTIONS = list(range(N_ACTIONS))


class System(ABC):
    """System that learns a log and decides; `prepare` and `encode` convert its input.

    Args:
        name: for tables and charts.
        needs: module it needs besides those of recparams; empty if it needs none.
    """

    def __init__(self, name: str, needs: str = "") -> None:
        self.name = name
        self.needs = needs

    @property
    def installed(self) -> bool:
        """True if the module that it needs is installed."""
        return not self.needs or find_spec(self.needs) is not None

    def prepare(self, log: Log) -> None:
        """Converts the log for `learn`."""
        self.inputs = [self.encode(*question) for question in log.questions()]
        self.actions = log.action.tolist()
        self.rewards = log.reward.tolist()

    @abstractmethod
    def encode(self, traits: Sequence[float], context: Context) -> Any:
        """Converts five scores, 0 to 100, and a context for `decide`."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything learned."""

    @abstractmethod
    def learn(self) -> None:
        """Learns the prepared log once."""

    @abstractmethod
    def decide(self, ready: Any) -> int:
        """Returns an action, 0 to 26, for the result of `encode`."""


class Contestant(System):
    """System whose action probabilities are known."""

    @abstractmethod
    def action_dist(
        self, traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Returns probabilities of all actions for n people, without exploration, (n, 27).

        Args:
            traits: scores, 0 to 100, (n, 5).
            context: context indices, (n,).
        """

    @abstractmethod
    def size(self) -> int:
        """Returns the size of the stored policy in bytes."""


def one_hot(actions: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Returns probability 1 for each of n actions, float64 (n, 27)."""
    return np.eye(N_ACTIONS)[np.asarray(actions, dtype=np.intp)]


class PolicySystem(Contestant):
    """System that decides by a policy as the server does; `learn` makes the policy."""

    policy: Policy

    def encode(self, traits: Sequence[float], context: Context) -> Any:
        state = self.policy.space.index(traits, context)
        if isinstance(self.policy, GreedyTable):
            return state
        return np.array([state]), np.array([traits])

    def decide(self, ready: Any) -> int:
        if isinstance(self.policy, GreedyTable):
            return int(self.policy.actions[ready])
        return int(RNG.choices(ACTIONS, self.policy.action_dist(*ready)[0])[0])

    def action_dist(
        self, traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return self.policy.action_dist(states(traits, context, self.policy.space), traits)

    def size(self) -> int:
        return len(zstandard.compress(pack(self.policy.arrays())))


class LearnerSystem(PolicySystem):
    """One of the algorithms of `recparams_rl.learners`, with its default hyperparameters.

    Args:
        algorithm: its name.
        smoothing: as in `Learner`; None for the default.
    """

    learner: Learner

    def __init__(self, algorithm: str, smoothing: Smoothing | None = None) -> None:
        deep = issubclass(LEARNERS[algorithm].Settings, DeepHyperparameters)
        super().__init__(algorithm, "torch" if deep else "")
        self.smoothing = smoothing

    def prepare(self, log: Log) -> None:
        self.transitions = transitions(log)

    def reset(self) -> None:
        hyperparameters = settings_of(self.name, {})
        self.learner = LEARNERS[self.name](SPACE, hyperparameters, smoothing=self.smoothing)

    def learn(self) -> None:
        self.learner.learn(self.transitions)
        self.policy = self.learner.publish()


class RulesSystem(PolicySystem):
    """The hand-written rules."""

    def __init__(self) -> None:
        super().__init__("rules")
        self.policy = rule_based_policy(SPACE, 0.0)

    def prepare(self, log: Log) -> None:
        """Does nothing: the log is not used."""

    def reset(self) -> None:
        """Does nothing: nothing is learned."""

    def learn(self) -> None:
        """Does nothing: the rules are fixed."""


class RandomSystem(Contestant):
    """Uniformly random policy."""

    def __init__(self) -> None:
        super().__init__("random")

    def prepare(self, log: Log) -> None:
        """Does nothing: the log is not used."""

    def encode(self, traits: Sequence[float], context: Context) -> None:  # noqa: ARG002
        return None

    def reset(self) -> None:
        """Does nothing: nothing is learned."""

    def learn(self) -> None:
        """Does nothing: the policy is fixed."""

    def decide(self, ready: None) -> int:  # noqa: ARG002
        return int(RNG.random() * N_ACTIONS)

    def action_dist(
        self,
        traits: NDArray[np.float64],
        context: NDArray[np.int64],  # noqa: ARG002
    ) -> NDArray[np.float64]:
        return np.full((len(traits), N_ACTIONS), 1.0 / N_ACTIONS)

    def size(self) -> int:
        return 0
