"""One decision: state in, action and token out. Works from memory alone."""

from __future__ import annotations

import random
import time

from recparams.v1 import recommendation_pb2 as pb
from rl.action import N_ACTIONS
from rl.policy import BORROWED, LEARNED, RULE_BASED, Policy, propensity
from rl.rules import rule_based_action
from rl.state import Context, StateSpace
from server.policies import PolicyHolder
from server.requests import ContextNumbers
from server.store.models import RULES_VERSION
from server.tokens import UNKNOWN_TRAITS, TokenCodec, Traits
from server.vocabulary import (
    ACTION_MESSAGES,
    ARM_NUMBERS,
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    PARAMS_MESSAGES,
    TIME_OF_DAY_NAMES,
    context_table,
)

_SOURCES = {
    LEARNED: pb.DECISION_SOURCE_LEARNED,
    BORROWED: pb.DECISION_SOURCE_BORROWED,
    RULE_BASED: pb.DECISION_SOURCE_RULE_BASED,
}
_NEUTRAL_TRAITS: Traits = (50.0, 50.0, 50.0, 50.0, 50.0)


class Decider:
    """Chooses actions and issues their tokens.

    Args:
        holder: the policy in memory.
        tokens: issues the tokens.
        exploration: probability of a random action, 0 to 1; None follows the served policy's.
    """

    def __init__(self, holder: PolicyHolder, tokens: TokenCodec, exploration: float | None) -> None:
        self._holder = holder
        self._tokens = tokens
        self._exploration = exploration
        self._space: StateSpace = holder.space
        self.contexts = context_table(holder.space)

    def decide(
        self, user_id: str, traits: Traits, context: ContextNumbers
    ) -> pb.GetRecommendationParamsResponse:
        """Decides for a person with a profile."""
        serving = self._holder.serving
        arm = serving.arm_of(user_id)
        state = self._space.cell(traits) * self._space.n_contexts + self.contexts[context]
        policy = arm.policy
        greedy = action = policy.actions[state]
        source = _SOURCES[policy.sources[state]]
        epsilon = self._epsilon(policy)
        if epsilon > 0.0 and random.random() < epsilon:  # noqa: S311 - exploration, not secrecy
            action = int(random.random() * N_ACTIONS)  # noqa: S311
            if action != greedy:
                source = pb.DECISION_SOURCE_EXPLORATION
        shadow = serving.shadow
        if shadow is not None:
            shadow.decisions += 1
            shadow.agreements += shadow.policy.actions[state] == greedy
        # Over the arms too: which one a person is in was drawn as well, by the salt.
        chance = 0.0
        for one in serving.arms:
            chance += one.share * propensity(
                self._epsilon(one.policy), greedy=one.policy.actions[state] == action
            )
        no_model = serving.version == RULES_VERSION
        return self._response(
            user_id,
            traits,
            context,
            action,
            chance,
            arm.version,
            ARM_NUMBERS[arm.name],
            source,
            pb.FALLBACK_REASON_NO_MODEL if no_model else pb.FALLBACK_REASON_UNSPECIFIED,
            serving.plan.id,
        )

    def _epsilon(self, policy: Policy) -> float:
        return policy.epsilon if self._exploration is None else self._exploration

    def decide_without_profile(
        self, user_id: str, reason: pb.FallbackReason.ValueType, context: ContextNumbers
    ) -> pb.GetRecommendationParamsResponse:
        """Decides for a person of whom nothing is known: by the rules, at neutral scores."""
        serving = self._holder.serving
        content_type, mood, time_of_day = context
        names = Context(
            CONTENT_TYPE_NAMES[content_type], MOOD_NAMES[mood], TIME_OF_DAY_NAMES[time_of_day]
        )
        return self._response(
            user_id,
            UNKNOWN_TRAITS,
            context,
            rule_based_action(_NEUTRAL_TRAITS, names).index,
            1.0,
            RULES_VERSION,
            ARM_NUMBERS[serving.arm_of(user_id).name],
            pb.DECISION_SOURCE_RULE_BASED,
            reason,
            serving.plan.id,
        )

    def _response(
        self,
        user_id: str,
        traits: Traits,
        context: ContextNumbers,
        action: int,
        chance: float,
        version: int,
        arm: pb.PolicyArm.ValueType,
        source: pb.DecisionSource.ValueType,
        reason: pb.FallbackReason.ValueType,
        activation: int,
    ) -> pb.GetRecommendationParamsResponse:
        decided_at = time.time_ns() // 1_000_000
        token = self._tokens.issue(
            user_id,
            decided_at,
            version,
            chance,
            *context,
            action,
            arm,
            source,
            traits,
            activation,
        )
        return pb.GetRecommendationParamsResponse(
            params=PARAMS_MESSAGES[action],
            action=ACTION_MESSAGES[action],
            decision_token=token,
            model_version=version,
            policy_arm=arm,
            propensity=chance,
            source=source,
            fallback_reason=reason,
        )
