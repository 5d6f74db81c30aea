"""Outside libraries that do a comparable job, imported where they are first used."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.network import context_inputs
from recparams_rl.state import Context
from recparams_simulation.compare.logs import CONTEXTS, SPACE, Log
from recparams_simulation.compare.systems import ACTIONS, RNG, Contestant, one_hot


def words(context: Context) -> tuple[str, str, str]:
    """Returns the names that make up a context."""
    return context.content_type, context.mood, context.time_of_day


def scaled(traits: Sequence[float]) -> list[float]:
    """Returns scores centred and scaled to about one, as regressions want them."""
    return [(score - 50.0) / 25.0 for score in traits]


class MABWiser(Contestant):
    """A ridge regression for each action on a constant, the traits and the context as 0 and 1.

    Args:
        policy: name of a learning policy.
        settings: of it.
    """

    def __init__(self, policy: str, **settings: float) -> None:
        super().__init__(f"MABWiser {policy}", "mabwiser")
        self._policy, self._settings = policy, settings
        flags = context_inputs(SPACE).tolist()
        self._flags = dict(zip(CONTEXTS, flags, strict=True))

    def prepare(self, log: Log) -> None:
        self.matrix = self._matrix(log.traits, log.context)
        self.actions, self.rewards = log.action, log.reward

    @staticmethod
    def _matrix(
        traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> NDArray[np.floating[Any]]:
        constant = np.ones((len(traits), 1))
        return np.hstack([constant, (traits - 50.0) / 25.0, context_inputs(SPACE)[context]])

    def encode(self, traits: Sequence[float], context: Context) -> Any:
        return np.array([[1.0, *scaled(traits), *self._flags[context]]])

    def reset(self) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        policy = getattr(LearningPolicy, self._policy)(**self._settings)
        self.model = MAB(ACTIONS, policy, seed=1)

    def learn(self) -> None:
        self.model.fit(self.actions, self.rewards, self.matrix)

    def learn_online(self, rows: int) -> None:
        """Learns further rows, one at a time."""
        for i in range(rows):
            one = slice(i, i + 1)
            self.model.partial_fit(self.actions[one], self.rewards[one], self.matrix[one])

    def decide(self, ready: Any) -> int:
        return int(self.model.predict(ready))

    def action_dist(
        self, traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return one_hot(np.atleast_1d(self.model.predict(self._matrix(traits, context))))

    def size(self) -> int:
        return len(pickle.dumps(self.model))


class VowpalWabbit(Contestant):
    """`--cb_explore`: a linear model for each action, weighted by propensity; its text format.

    Args:
        epsilon: probability of a random action in `decide`.
    """

    def __init__(self, epsilon: float = 0.05) -> None:
        super().__init__("Vowpal Wabbit", "vowpalwabbit")
        self._epsilon = epsilon

    def prepare(self, log: Log) -> None:
        super().prepare(log)
        labels = zip(self.actions, self.rewards, log.propensity.tolist(), self.inputs, strict=True)
        self.lines = [f"{a + 1}:{-reward:.4f}:{p:.4f} {text}" for a, reward, p, text in labels]

    def encode(self, traits: Sequence[float], context: Context) -> str:
        o, c, e, a, n = scaled(traits)
        return f"| o:{o:.4f} c:{c:.4f} e:{e:.4f} a:{a:.4f} n:{n:.4f} {' '.join(words(context))}"

    def reset(self) -> None:
        from vowpalwabbit import Workspace

        self.model = Workspace(f"--cb_explore {N_ACTIONS} --epsilon {self._epsilon} --quiet")

    def learn(self) -> None:
        for line in self.lines:
            self.model.learn(line)

    def decide(self, ready: str) -> int:
        return RNG.choices(ACTIONS, self.model.predict(ready))[0]

    def action_dist(
        self, traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        rows = zip(traits.tolist(), context.tolist(), strict=True)
        chances = [self.model.predict(self.encode(one, CONTEXTS[place])) for one, place in rows]
        return one_hot(np.argmax(chances, axis=1))

    def size(self) -> int:
        with TemporaryDirectory() as folder:
            file = Path(folder) / "model"
            self.model.save(str(file))
            return file.stat().st_size
