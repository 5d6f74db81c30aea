"""What a fake server decides: recommendations by name, tables, and the tokens of both."""

import itertools
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b, sha256
from typing import Any

from recparams.v1 import policy_pb2
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_client import conversion, fallback
from recparams_client.conversion import CONTENT_TYPES, MOODS, TIMES_OF_DAY
from recparams_client.sealing import FORMAT, TAG_BYTES, SealingKey
from recparams_client.types import Recommendation, RecommendationParams

Table = Mapping[tuple[str, str, str], tuple[str, str, str]]
"""(content type, mood, time of day) -> (energy, diversity, novelty), by their names."""

_ACTIONS = {
    (one.energy, one.diversity, one.novelty): number
    for number in range(27)
    for one in [
        fallback.recommendation(
            number, model_version=0, policy_arm="", propensity=1.0, source="", fallback_reason=""
        )
    ]
}


def recommendation(
    energy: str = "medium", diversity: str = "balanced", novelty: str = "mixed", **changes: Any
) -> Recommendation:
    """Returns a decision of version 1 with the parameters of an action, for a fake to make.

    Args:
        energy: "low", "medium" or "high".
        diversity: "focused", "balanced" or "diverse".
        novelty: "familiar", "mixed" or "exploratory".
        changes: other fields, by name. Without a decision_token the fake makes one.

    Raises:
        ValueError: an unknown name.
    """
    one = fallback.recommendation(
        number_of(energy, diversity, novelty),
        model_version=1,
        policy_arm="rl",
        propensity=1.0,
        source="learned",
        fallback_reason="",
    )
    return replace(one, **changes)


def number_of(*action: str) -> int:
    """Returns the number of an action, 0 to 26. Raises ValueError if there is none of its names."""
    if action not in _ACTIONS:
        raise ValueError(f"no action is {' '.join(action)}: as in 'low diverse exploratory'")
    return _ACTIONS[action]


def response(decision: Recommendation, token: bytes) -> pb.GetRecommendationParamsResponse:
    """Returns a decision as the server sends it."""
    reason: Any = 0
    if decision.fallback_reason:
        reason = conversion.number(conversion.REASONS, "fallback_reason", decision.fallback_reason)
    return pb.GetRecommendationParamsResponse(
        params=types.RecommendationParams(
            **{one.name: getattr(decision.params, one.name) for one in fields(RecommendationParams)}
        ),
        action=types.Action(
            energy=conversion.number(conversion.ENERGIES, "energy", decision.energy),
            diversity=conversion.number(conversion.DIVERSITIES, "diversity", decision.diversity),
            novelty=conversion.number(conversion.NOVELTIES, "novelty", decision.novelty),
        ),
        decision_token=token,
        model_version=decision.model_version,
        policy_arm=conversion.number(conversion.ARMS, "policy_arm", decision.policy_arm),
        propensity=decision.propensity,
        source=conversion.number(conversion.SOURCES, "source", decision.source),
        fallback_reason=reason,
    )


@dataclass(frozen=True)
class Policy:
    """A table to serve, and the hand-written rules wherever it says nothing.

    Attributes:
        version: 0 is the rules alone.
    """

    table: Table
    version: int

    def decide(
        self, context: tuple[str, str, str], scores: Mapping[str, float] | None
    ) -> Recommendation:
        """Returns the decision in a context; without scores the rules' at neutral ones."""
        is_learned = context in self.table and scores is not None
        reason = "" if self.version else "no_model"
        action = (
            number_of(*self.table[context])
            if is_learned
            else fallback.rules_action(scores or {}, *context)
        )
        return fallback.recommendation(
            action,
            model_version=0 if scores is None else self.version,
            policy_arm="rl" if self.version else "rule_based",
            propensity=1.0,
            source="learned" if is_learned else "rule_based",
            fallback_reason="no_profile" if scores is None else reason,
        )

    def snapshot(self, activation: int) -> bytes:
        """Returns the policy as a serialised PolicySnapshot, in which scores make no difference.

        Raises:
            ValueError: the table has an unknown name.
        """
        known: list[Any] = [sorted(one)[1:] for one in (CONTENT_TYPES, MOODS, TIMES_OF_DAY)]
        names = [
            (CONTENT_TYPES[c], MOODS[m], TIMES_OF_DAY[t]) for c, m, t in itertools.product(*known)
        ]
        unknown = set(self.table) - set(names)
        if unknown:
            raise ValueError(f"no context is {unknown.pop()}: as in ('music', 'calm', 'evening')")
        decided = [self.decide(one, {}) for one in names]
        reason: Any = 0 if self.version else pb.FALLBACK_REASON_NO_MODEL
        arm = policy_pb2.ServedArm(
            arm=pb.POLICY_ARM_RL if self.version else pb.POLICY_ARM_RULE_BASED,
            version=self.version,
            share=1.0,
            actions=bytes(number_of(one.energy, one.diversity, one.novelty) for one in decided),
            sources=bytes(
                conversion.number(conversion.SOURCES, "source", one.source) for one in decided
            ),
            fallback_reason=reason,
        )
        return policy_pb2.PolicySnapshot(
            activation=activation,
            bins=1,
            content_types=known[0],
            moods=known[1],
            times_of_day=known[2],
            percent=100.0,
            arms=[arm],
        ).SerializeToString()


def watched(snapshot: bytes, known: bytes, key: SealingKey) -> policy_pb2.WatchPolicyResponse:
    """Returns what a watcher gets who knows the snapshot with the checksum `known`."""
    checksum = sha256(snapshot).digest()
    message = policy_pb2.WatchPolicyResponse(
        snapshot=b"" if checksum == known else zlib.compress(snapshot), checksum=checksum
    )
    message.token_key.id, message.token_key.key = key.id, key.key
    message.token_key.expires_at.FromSeconds(int(key.expires_at))
    return message


def is_sealed(token: bytes, key: SealingKey, user: bytes) -> bool:
    """Returns True if a key made a token, for this user id in UTF-8."""
    start = len(FORMAT + key.id)
    tag, sealed = token[start : start + TAG_BYTES], token[start + TAG_BYTES :]
    stream = blake2b(tag, key=key.key[16:]).digest()[: len(sealed)]
    record = bytes(a ^ b for a, b in zip(sealed, stream, strict=False))
    expected = blake2b(key.id + record + user, key=key.key[:16], digest_size=TAG_BYTES).digest()
    return token.startswith(FORMAT + key.id) and tag == expected
