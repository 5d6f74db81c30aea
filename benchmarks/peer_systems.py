"""The peers as systems, and what each does. Optional: imported where first used."""

from collections import defaultdict
from collections.abc import Sequence

from benchmarks.report import Table
from benchmarks.systems import EPSILON
from recparams_rl.state import TRAITS, Context
from recparams_simulation.compare.logs import SPACE
from recparams_simulation.compare.peers import scaled, words
from recparams_simulation.compare.systems import ACTIONS, System

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


class RiverLinUCB(System):
    """`LinUCBDisjoint`: a Bayesian linear regression for each action, on dicts."""

    def __init__(self) -> None:
        super().__init__("river LinUCBDisjoint", "river")

    def encode(self, traits: Sequence[float], context: Context) -> dict[str, float]:
        scores = zip(TRAITS, scaled(traits), strict=True)
        return {"constant": 1.0, **dict(scores), **dict.fromkeys(words(context), 1.0)}

    def reset(self) -> None:
        from river.bandit import LinUCBDisjoint

        self.model = LinUCBDisjoint(seed=1)

    def learn(self) -> None:
        for action, reward, context in zip(self.actions, self.rewards, self.inputs, strict=True):
            self.model.update(action, context, reward)

    def decide(self, ready: dict[str, float]) -> int:
        return self.model.pull(ACTIONS, context=ready)


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
        return self.model[ready].pull(ACTIONS)
