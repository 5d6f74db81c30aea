"""The peers as systems, and what each does. Optional: imported where first used."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import Table
from benchmarks.systems import CONTEXTS, DICE, EPSILON, SPACE, Log, System
from rl.action import N_ACTIONS
from rl.state import TRAITS, Context

ARMS = list(range(N_ACTIONS))

CAPABILITIES = Table(
    ("", "recparams", "MABWiser", "Vowpal Wabbit, cb", "river.bandit"),
    (
        ("what an action brings later (discounting)", "yes, Q-learning", "no", "no", "no"),
        ("traits", "binned, then smoothed", "continuous", "continuous", "continuous in LinUCB"),
        ("new features", "new state space", "any matrix", "any, hashed", "any dict"),
        ("new actions", "no, 27", "yes", "yes, with adf", "yes"),
        ("learning", "batches, versions", "batches, partial_fit", "row by row", "row by row"),
        (
            "exploration",
            "epsilon-greedy",
            "epsilon, UCB, Thompson, softmax",
            "epsilon, bag, cover; adf: softmax, SquareCB",
            "epsilon, UCB, Thompson, Exp3",
        ),
        ("propensity of a decision", "exact, logged", "no", "exact, returned", "no"),
        ("propensities correct what is learned", "no", "no", "yes: mtr, ips, dr", "no"),
        (
            "off-policy evaluation",
            "dm, ipw, snipw, dr, switch-dr; intervals by person",
            "hold-out, other actions imputed",
            "progressive loss, by ips, dm or dr",
            "replay",
        ),
        ("versions, rollout, rollback", "yes", "pickle", "model files", "pickle"),
        ("serving", "gRPC", "library", "library, daemon", "library"),
    ),
)
"""What each does by itself; anything can be built around a library."""


def _words(context: Context) -> tuple[str, str, str]:
    return context.content_type, context.mood, context.time_of_day


def _scaled(traits: Sequence[float]) -> list[float]:
    """Scores on a scale of about one, as regressions want them."""
    return [(score - 50.0) / 25.0 for score in traits]


class MABWiser(System):
    """A ridge regression for each action on a constant, the traits and the context as 0 and 1.

    Args:
        policy: name of a learning policy.
        settings: of it.
    """

    def __init__(self, policy: str, **settings: float) -> None:
        super().__init__(f"MABWiser {policy}", "mabwiser")
        self._policy, self._settings = policy, settings
        words = (*SPACE.content_types, *SPACE.moods, *SPACE.times_of_day)
        self._flags = {
            context: [float(word in _words(context)) for word in words] for context in CONTEXTS
        }

    def prepare(self, log: Log) -> None:
        super().prepare(log)
        self.matrix = np.concatenate(self.inputs)
        self.actions, self.rewards = log.action, log.reward

    def encode(self, traits: Sequence[float], context: Context) -> Any:
        return np.array([[1.0, *_scaled(traits), *self._flags[context]]])

    def reset(self) -> None:
        from mabwiser.mab import MAB, LearningPolicy

        policy = getattr(LearningPolicy, self._policy)(**self._settings)
        self.model = MAB(ARMS, policy, seed=1)

    def learn(self) -> None:
        self.model.fit(self.actions, self.rewards, self.matrix)

    def learn_online(self, rows: int) -> None:
        """Learns further rows, one at a time."""
        for i in range(rows):
            self.model.partial_fit(self.actions[i : i + 1], self.rewards[i : i + 1], self.inputs[i])

    def decide(self, ready: Any) -> int:
        return self.model.predict(ready)


class VowpalWabbit(System):
    """`--cb_explore`: a linear model for each action, weighted by propensity; its text format."""

    def __init__(self) -> None:
        super().__init__("Vowpal Wabbit", "vowpalwabbit")

    def prepare(self, log: Log) -> None:
        super().prepare(log)
        labels = zip(self.actions, self.rewards, log.propensity.tolist(), self.inputs, strict=True)
        self.lines = [f"{a + 1}:{-reward:.4f}:{p:.4f} {text}" for a, reward, p, text in labels]

    def encode(self, traits: Sequence[float], context: Context) -> str:
        o, c, e, a, n = _scaled(traits)
        words = " ".join(_words(context))
        return f"| o:{o:.4f} c:{c:.4f} e:{e:.4f} a:{a:.4f} n:{n:.4f} {words}"

    def reset(self) -> None:
        from vowpalwabbit import Workspace

        self.model = Workspace(f"--cb_explore {N_ACTIONS} --epsilon {EPSILON} --quiet")

    def learn(self) -> None:
        for line in self.lines:
            self.model.learn(line)

    def decide(self, ready: str) -> int:
        return DICE.choices(ARMS, self.model.predict(ready))[0]


class RiverLinUCB(System):
    """`LinUCBDisjoint`: a Bayesian linear regression for each action, on dicts."""

    def __init__(self) -> None:
        super().__init__("river LinUCBDisjoint", "river")

    def encode(self, traits: Sequence[float], context: Context) -> dict[str, float]:
        scores = zip(TRAITS, _scaled(traits), strict=True)
        return {"constant": 1.0, **dict(scores), **dict.fromkeys(_words(context), 1.0)}

    def reset(self) -> None:
        from river.bandit import LinUCBDisjoint

        self.model = LinUCBDisjoint(seed=1)

    def learn(self) -> None:
        for action, reward, context in zip(self.actions, self.rewards, self.inputs, strict=True):
            self.model.update(action, context, reward)

    def decide(self, ready: dict[str, float]) -> int:
        return self.model.pull(ARMS, context=ready)


class RiverByState(System):
    """`EpsilonGreedy` has no context, so there is one for each state: a table of mean rewards."""

    def __init__(self) -> None:
        super().__init__("river EpsilonGreedy by state", "river")

    def encode(self, traits: Sequence[float], context: Context) -> int:
        return SPACE.index(traits, context)

    def reset(self) -> None:
        from river.bandit import EpsilonGreedy

        self.model = defaultdict(lambda: EpsilonGreedy(EPSILON, seed=1))

    def learn(self) -> None:
        for action, reward, state in zip(self.actions, self.rewards, self.inputs, strict=True):
            self.model[state].update(action, reward)

    def decide(self, ready: int) -> int:
        return self.model[ready].pull(ARMS)
