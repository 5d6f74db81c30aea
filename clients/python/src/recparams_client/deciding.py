"""Decisions from a snapshot: those of recparams_server/serving/decider.py, in plain Python."""

import random
import struct
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace

from recparams.v1 import policy_pb2
from recparams.v1 import recommendation_pb2 as pb
from recparams_client import fallback
from recparams_client.conversion import ARMS, REASONS, SOURCES
from recparams_client.draws import Draws
from recparams_client.sealing import Scores, SealingKey, pack, seal
from recparams_client.snapshot import N_ACTIONS, Context, Snapshot
from recparams_client.types import PersonalityProfile, Recommendation

_pack, _unpack = struct.Struct("<5f").pack, struct.Struct("<5f").unpack
_UNKNOWN: Scores = (float("nan"),) * 5
_MOST_MADE = 10_000
_EXPLORATION = pb.DECISION_SOURCE_EXPLORATION
_RULE_BASED = pb.DECISION_SOURCE_RULE_BASED

GetKey = Callable[[], SealingKey | None]
Made = tuple[SealingKey | None, str, Scores, Context, int, int, int, int, int]
"""The key of that time (a later one does not speak for decisions before it), user id, scores,
context, action, arm, source, activation, and when, in nanoseconds since 1970."""


class LocalDecision:
    """A decision whose token is made when it is first asked for.

    Attributes:
        recommendation: the decision, without a token.
    """

    __slots__ = ("_made", "_token", "recommendation")

    def __init__(self, recommendation: Recommendation, made: Made) -> None:
        self.recommendation = recommendation
        self._made = made
        self._token: bytes | None = None

    @property
    def decision_token(self) -> bytes:
        """The token to send back with the reaction.

        Empty if no key of the server's was valid any more.
        """
        if self._token is None:
            self._token = _token(self.recommendation, self._made)
        return self._token

    def with_token(self) -> Recommendation:
        """Returns the recommendation with its token, as the server gives it."""
        made = Recommendation.__new__(Recommendation)
        # `replace` would take two microseconds more: it sets every field of the new one by itself.
        fields = made.__dict__
        fields.update(self.recommendation.__dict__)
        fields["decision_token"] = self.decision_token
        return made


class Decider:
    """Decisions by one snapshot.

    Args:
        snapshot: the served policy.
        key: gives the key to seal tokens with, or None.

    Attributes:
        is_complete: True if every arm is a table; if not, only the server can decide.
    """

    def __init__(self, snapshot: Snapshot, key: GetKey) -> None:
        self.snapshot = snapshot
        self._key = key
        bins, n_contexts = snapshot.bins, len(snapshot.contexts)
        self._step = 1.0 if snapshot.cuts else 100.0 / bins
        # The bin of each step; a score of 100 falls into the last one.
        ladder = (
            tuple(bisect_right(snapshot.cuts, score) for score in range(101))
            if snapshot.cuts
            else (*range(bins), bins - 1)
        )
        self._parts = tuple(
            tuple(one * bins**place * n_contexts for one in ladder) for place in (4, 3, 2, 1, 0)
        )
        self._contexts = snapshot.contexts
        self._activation = snapshot.activation
        self._arms = [_Arm(arm, n_contexts) for arm in snapshot.arms]
        self._only = self._arms[0] if len(self._arms) == 1 else None
        self.is_complete = all(arm.actions for arm in self._arms)

    @property
    def version(self) -> int:
        """The version that is active or being rolled out; 0 is the rules."""
        by_arm = {arm.arm: arm.version for arm in self.snapshot.arms}
        return by_arm.get(pb.POLICY_ARM_RL, self.snapshot.arms[0].version)

    def decide(
        self,
        user_id: str,
        profile: PersonalityProfile,
        content_type: str,
        mood: str,
        time_of_day: str,
    ) -> LocalDecision:
        """Returns a decision for a checked user id.

        Raises:
            KeyError: the snapshot does not know the context.
            ValueError: a score is not from 0 to 100.
        """
        context = self._contexts[content_type, mood, time_of_day]
        # As the wire has them: a score close below the edge of a bin may round up to it.
        o, c, e, a, n = scores = _unpack(
            _pack(
                profile.openness,
                profile.conscientiousness,
                profile.extraversion,
                profile.agreeableness,
                profile.neuroticism,
            )
        )
        if not (
            0.0 <= o <= 100.0
            and 0.0 <= c <= 100.0
            and 0.0 <= e <= 100.0
            and 0.0 <= a <= 100.0
            and 0.0 <= n <= 100.0
        ):
            raise ValueError("scores must be from 0 to 100")
        step = self._step
        by_o, by_c, by_e, by_a, by_n = self._parts
        state = (
            by_o[int(o / step)]
            + by_c[int(c / step)]
            + by_e[int(e / step)]
            + by_a[int(a / step)]
            + by_n[int(n / step)]
            + context.index
        )
        arm = self._only
        if arm is None:
            arm = self._arms[self.snapshot.arm_of(user_id.encode())]
        action = arm.actions[state]
        source = arm.sources[state]
        if arm.explores:
            drawn = arm.explore(state, action)
            if drawn != action:
                action, source = drawn, _EXPLORATION
        if self._only is None:
            chance = sum(one.chance_of(state, action) for one in self._arms)
            shared = arm.recommendation(action, source, min(chance, 1.0))
        elif arm.draws is None:
            shared = arm.recommendations[source][action]
        else:
            shared = arm.recommendation(action, source, min(arm.chance_of(state, action), 1.0))
        decided_at = time.time_ns()
        return LocalDecision(
            shared,
            (
                self._key(),
                user_id,
                scores,
                context,
                action,
                arm.number,
                source,
                self._activation,
                decided_at,
            ),
        )

    def decide_without_profile(
        self, user_id: str, content_type: str, mood: str, time_of_day: str
    ) -> LocalDecision:
        """Returns the rules' decision at neutral scores. Raises KeyError as `decide`."""
        context = self._contexts[content_type, mood, time_of_day]
        arm = self._arms[self.snapshot.arm_of(user_id.encode())]
        action = fallback.rules_action({}, content_type, mood, time_of_day)
        shared = fallback.recommendation(
            action,
            model_version=0,
            policy_arm=ARMS[arm.number],
            propensity=1.0,
            source=SOURCES[_RULE_BASED],
            fallback_reason="no_profile",
        )
        decided_at = time.time_ns()
        return LocalDecision(
            shared,
            (
                self._key(),
                user_id,
                _UNKNOWN,
                context,
                action,
                arm.number,
                _RULE_BASED,
                self._activation,
                decided_at,
            ),
        )


def _token(shared: Recommendation, made: Made) -> bytes:
    """Returns the token of a decision; empty if there is no key for it."""
    key, user_id, scores, context, action, arm, source, activation, decided_at = made
    if key is None or decided_at > 1e9 * key.expires_at:
        return b""
    record = pack(
        decided_at // 1_000_000,
        shared.model_version,
        shared.propensity,
        context.numbers,
        action,
        arm,
        source,
        scores,
        activation,
    )
    return seal(key, user_id.encode(), record)


class _Arm:
    """An arm of a snapshot, with every recommendation it can make."""

    def __init__(self, message: policy_pb2.ServedArm, n_contexts: int) -> None:
        self._n_contexts = n_contexts
        self.number: int = message.arm
        self.epsilon = message.epsilon
        self.actions = message.actions
        self.sources = message.sources
        self.other_chance = message.share * (message.epsilon / N_ACTIONS)
        self.greedy_chance = message.share * (message.epsilon / N_ACTIONS + (1.0 - message.epsilon))
        self.draws = Draws(message.draws) if message.HasField("draws") else None
        self.explores = self.epsilon > 0.0 or self.draws is not None
        n = 1 if self.draws is None else self.draws.n
        self._chance_of_draw = message.share * (1.0 - message.epsilon) / n
        self._templates = [
            fallback.recommendation(
                action,
                model_version=message.version,
                policy_arm=ARMS[message.arm],
                propensity=1.0,
                source="",
                fallback_reason=REASONS[message.fallback_reason],
            )
            for action in range(N_ACTIONS)
        ]
        self._made: dict[tuple[int, int, float], Recommendation] = {}
        # In order of source numbers, the first of which nobody uses.
        self.recommendations = [
            [
                self.recommendation(
                    action,
                    source,
                    self.other_chance if source == _EXPLORATION else self.greedy_chance,
                )
                for action in range(N_ACTIONS)
            ]
            for source in sorted(pb.DecisionSource.values())
        ]

    def explore(self, state: int, action: int) -> int:
        """Returns the action of a state, or another that is explored in its place."""
        chance = random.random()  # noqa: S311 - not secrecy
        if chance < self.epsilon:
            return int(random.random() * N_ACTIONS)  # noqa: S311
        if self.draws is None:
            return action
        cell, context = divmod(state, self._n_contexts)
        draw = int((chance - self.epsilon) / (1.0 - self.epsilon) * self.draws.n)
        drawn = self.draws.take(cell, context, draw)
        return action if drawn is None else drawn

    def chance_of(self, state: int, action: int) -> float:
        """Returns the share of all people times the probability of an action in a state."""
        is_own = self.actions[state] == action
        if self.draws is None:
            return self.greedy_chance if is_own else self.other_chance
        cell, context = divmod(state, self._n_contexts)
        drawn = self.draws.count(cell, context, action, is_own=is_own)
        return self.other_chance + drawn * self._chance_of_draw

    def recommendation(self, action: int, source: int, propensity: float) -> Recommendation:
        """Returns the recommendation of an action, 0 to 26."""
        # There are few propensities: each arm has an action in so many draws, if not in none.
        key = action, source, propensity
        found = self._made.get(key)
        if found is None:
            if len(self._made) >= _MOST_MADE:
                self._made.clear()
            found = replace(self._templates[action], source=SOURCES[source], propensity=propensity)
            self._made[key] = found
        return found
