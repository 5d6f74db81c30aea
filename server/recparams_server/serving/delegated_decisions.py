"""Decisions that callers made by themselves, held against what was served to them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION, Activation, ArmPlan
from recparams_rl.evaluation.overlap import least_pscore
from recparams_rl.policy import EXPLORATION, RULE_BASED, GreedyTable, Policy
from recparams_rl.state import StateSpace
from recparams_server.contract.vocabulary import ARM_NAMES, SOURCE_NUMBERS, Contexts, Traits
from recparams_server.serving.delegated_tokens import Told
from recparams_server.serving.policies import neutral_action
from recparams_server.serving.tokens import Decision

CLOSE = 1e-4
"""Relative; propensities come as float32, summed in any order."""


@dataclass(frozen=True)
class DelegatedDecision:
    """A decision that a caller made.

    Attributes:
        path: the field with its token, such as interactions[3].decision_token.
        user_id: whom it was made for.
        decision: what the token states.
        told: the exploration that the caller was told.
    """

    path: str
    user_id: str
    decision: Decision
    told: Told


@dataclass(frozen=True)
class ServedPlan:
    """An activation with its policies.

    Attributes:
        plan: the activation.
        policies: by version; those that cannot be loaded any more are not in it.
    """

    plan: Activation
    policies: Mapping[int, Policy]

    @cached_property
    def arms(self) -> dict[str, ArmPlan]:
        """Every arm with people in it, by name."""
        return self.plan.arms()

    @cached_property
    def is_whole(self) -> bool:
        """True if the policy of every arm is there."""
        return all(arm.version in self.policies for arm in self.arms.values())

    def arm_of(self, user_id: str) -> str:
        """Returns the name of the arm of a person."""
        *_, last = self.arms
        name = last if len(self.arms) == 1 else self.plan.split.arm(user_id)
        # With the rules as baseline the previous arm and the rules' are one.
        return name if name in self.arms else last


def problem(
    served: ServedPlan,
    space: StateSpace,
    contexts: Contexts,
    found: DelegatedDecision,
    now: Told,
) -> str:
    """Returns a sentence that says why a plan cannot have led to a decision; empty if it can.

    Where a policy cannot be loaded any more, nobody knows what it would have done, and the
    propensity is only held to a bound.

    Args:
        served: the activation that the decision names.
        space: the state space.
        contexts: its contexts, by enum numbers.
        found: the decision.
        now: what this server tells callers, which is as good as what this one was told: they may
            have come from a server with other settings since.
    """
    decision = found.decision
    traits = decision.traits
    context = (decision.content_type, decision.mood, decision.time_of_day)
    name = served.arm_of(found.user_id)
    if ARM_NAMES[decision.arm] != name:
        return f"names another arm than {name}, in which this person is"
    if context not in contexts:
        return "names a context that this deployment does not have"
    if math.isnan(traits[0]):
        made = decision.model_version, decision.action, decision.source, decision.propensity
        if made != (RULES_VERSION, neutral_action(context), SOURCE_NUMBERS[RULE_BASED], 1.0):
            return "names no scores, and not what the rules say then"
        return ""
    own = served.arms[name].version
    if decision.model_version != own:
        return f"names version {decision.model_version}, where version {own} was served"
    explorations = (found.told, now)
    if not served.is_whole:
        least = min(least_pscore(one.epsilon if one.everywhere else 0.0) for one in explorations)
        if decision.propensity < least:
            return f"names propensity {decision.propensity:g}, below {least:g}"
        return ""
    state = space.cell(traits) * space.n_contexts + contexts[context]
    place = _Place(state, traits, decision.action)
    if decision.source != SOURCE_NUMBERS[_source(served.policies[own], place)]:
        return "names another source of its action than it has"
    for exploration in explorations:
        possible = _propensity(served, own, place, exploration)
        if possible > 0.0 and math.isclose(possible, decision.propensity, rel_tol=CLOSE):
            return ""
    return (
        f"names propensity {decision.propensity:g}, which its action cannot have had by "
        f"activation {served.plan.id}"
    )


class _Place(NamedTuple):
    """A state, the scores of somebody in it, and an action taken there."""

    state: int
    traits: Traits
    action: int


def _source(policy: Policy, place: _Place) -> int:
    """Returns the source of the action, as `recparams_rl.policy` numbers sources."""
    states = np.array([place.state])
    likeliest = policy.likeliest(states, np.array([place.traits]))[0]
    return int(policy.sources_of(states)[0]) if place.action == likeliest else EXPLORATION


def _probability(policy: Policy, place: _Place, *, by_draws: bool) -> float:
    """Returns the probability of the action, without random ones."""
    states = np.array([place.state])
    if isinstance(policy, GreedyTable):
        greedy = policy.greedy[states]
        if by_draws and policy.draws is not None:
            return float(policy.draws.dist(states, greedy)[0, place.action])
        return float(place.action == greedy[0])
    return float(policy.action_dist(states, np.array([place.traits]))[0, place.action])


def _propensity(served: ServedPlan, own: int, place: _Place, exploration: Told) -> float:
    """Returns the propensity of an action over all arms; 0 if the person's own cannot take it.

    Args:
        served: the plan, whole.
        own: the version of the person's arm.
        place: the action, and where.
        exploration: what was explored.
    """
    total = 0.0
    for arm in served.arms.values():
        policy = served.policies[arm.version]
        epsilon = exploration.epsilon_of(arm.version, policy)
        probability = _probability(policy, place, by_draws=exploration.by_draws)
        chance = epsilon / N_ACTIONS + (1.0 - epsilon) * probability
        if arm.version == own and chance == 0.0:
            return 0.0
        total += arm.share * chance
    # Shares that sum to 1 may, in floating point, sum to a little more.
    return min(total, 1.0)
