"""The policies in memory: the arms that are served, and a version scored in passing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from recparams_rl.arms import NEVER_ACTIVATED, RULE_BASED, RULES_VERSION, Activation
from recparams_rl.policy import GreedyTable, Policy, rule_based_policy
from recparams_rl.rules import rule_based_action
from recparams_rl.state import Context, StateSpace
from recparams_server.contract.vocabulary import (
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    TIME_OF_DAY_NAMES,
    ContextNumbers,
    Traits,
)

NEUTRAL_TRAITS: Traits = (50.0, 50.0, 50.0, 50.0, 50.0)


@cache
def neutral_action(context: ContextNumbers) -> int:
    """Returns the rules' action at neutral scores, which an unknown person gets; 0 to 26."""
    content_type, mood, time_of_day = context
    names = Context(
        CONTENT_TYPE_NAMES[content_type], MOOD_NAMES[mood], TIME_OF_DAY_NAMES[time_of_day]
    )
    return rule_based_action(NEUTRAL_TRAITS, names).index


@dataclass(frozen=True)
class Arm:
    """People who are served one policy; `share` of all, 0 to 1."""

    name: str
    version: int
    policy: Policy
    share: float


@dataclass
class Shadow:
    """A version scored in passing, with what is counted since the last flush."""

    id: int
    version: int
    policy: Policy
    decisions: int = 0
    agreements: int = 0

    @property
    def actions(self) -> bytes:
        """Of every state, where its policy has one action a state; else nothing."""
        return self.policy.actions if isinstance(self.policy, GreedyTable) else b""


@dataclass(frozen=True)
class Serving:
    """One whole plan, swapped as one reference.

    Attributes:
        arms: every arm with people in it; their shares sum to 1.
        plan: the activation that is served.
        activation: the newest activation seen, served or refused.
        refused: why the newest activation is not the one served; empty when it is.
        shadow: a version scored in passing, or None.
        passed_over: the highest activation whose number no decision token has room for, or 0.
        refused_shadow: the newest entry of shadowing if it was refused, or 0.
        exploration: exploration rate of all arms, 0 to 1; None leaves each policy its own.
    """

    arms: tuple[Arm, ...]
    plan: Activation
    activation: int
    refused: str = ""
    shadow: Shadow | None = None
    passed_over: int = 0
    refused_shadow: int = 0
    exploration: float | None = None

    def exploring(self, rate: float | None) -> "Serving":
        """Returns the same with another exploration rate of all arms."""
        if rate is None or rate == self.exploration:
            return self
        arms = tuple(
            replace(arm, policy=replace(arm.policy, epsilon=rate))  # type: ignore[type-var]
            for arm in self.arms
        )
        return replace(self, arms=arms, exploration=rate)

    @property
    def version(self) -> int:
        """The version that is active or being rolled out."""
        return self.plan.version

    def arm_of(self, user_id: str) -> Arm:
        """The arm of a person."""
        if len(self.arms) == 1:
            return self.arms[0]
        name = self.plan.split.arm(user_id)
        for arm in self.arms:
            if arm.name == name:
                return arm
        # With the rules as baseline the previous arm and the rules' are one.
        return self.arms[-1]


class PolicyHolder:
    """Holds what is served. Readers take `serving` once for each answer.

    Attributes:
        space: the state space.
        rules: the hand-written rules as a policy.
        serving: what is served.
        on_change: called after every change of what is served.
    """

    def __init__(self, space: StateSpace, initial_epsilon: float) -> None:
        self.space = space
        self.rules = rule_based_policy(space, initial_epsilon)
        self.serving = Serving(
            (Arm(RULE_BASED, RULES_VERSION, self.rules, 1.0),), NEVER_ACTIVATED, -1
        )
        self.on_change: Callable[[], object] = lambda: None

    @property
    def is_loaded(self) -> bool:
        """True once the database has said what to serve."""
        return self.serving.activation >= 0

    def serve(self, serving: Serving) -> None:
        """Serves something else from now on."""
        self.serving = serving
        self.on_change()
