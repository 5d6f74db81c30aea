"""The rule-based policy, for when the server does not answer: the server's rules, as data."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import grpc

from recparams.v1 import recommendation_pb2 as pb
from recparams_client._rules import HIGH_TRAIT, LOW_TRAIT, PARAMS, RULES
from recparams_client.conversion import (
    CONTENT_TYPES,
    DIVERSITIES,
    ENERGIES,
    MOODS,
    NOVELTIES,
    TIMES_OF_DAY,
)
from recparams_client.errors import from_rpc_error
from recparams_client.types import (
    PersonalityProfile,
    Recommendation,
    RecommendationParams,
    TimeOfDay,
)

NEUTRAL_SCORE = 50.0
TRAITS = tuple(field.name for field in fields(PersonalityProfile))
_REASONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "client_deadline",
    grpc.StatusCode.UNAVAILABLE: "client_unavailable",
    grpc.StatusCode.CANCELLED: "client_unavailable",
    # More calls at a time than the server takes.
    grpc.StatusCode.RESOURCE_EXHAUSTED: "client_unavailable",
}


def reason_or_raise(raised: Any) -> str:
    """Returns the `fallback_reason` of a failed call.

    Raises RecParamsError if the server refused the request.
    """
    reason = _REASONS.get(raised.code())
    if reason is None:
        raise from_rpc_error(raised) from None
    return reason


def recommend(
    request: pb.GetRecommendationParamsRequest, reason: str, detail: str = ""
) -> Recommendation:
    """Returns the rules' answer to a request, marked as a fallback for a reason."""
    given = request.personality if request.HasField("personality") else None
    scores = {name: getattr(given, name) for name in TRAITS} if given else {}
    action = rules_action(
        scores, CONTENT_TYPES[request.content_type], MOODS[request.mood], time_of_day(request)
    )
    return recommendation(
        action,
        model_version=0,
        policy_arm="rule_based",
        propensity=1.0,
        source="rule_based",
        fallback_reason=reason,
        fallback_detail=detail,
    )


def recommendation(action: int, **how: Any) -> Recommendation:
    """Returns the recommendation of an action, 0 to 26, without a token."""
    params: Any = PARAMS[action]
    energy, rest = divmod(action, 9)
    diversity, novelty = divmod(rest, 3)
    return Recommendation(
        params=RecommendationParams(**params),
        energy=ENERGIES[energy + 1],
        diversity=DIVERSITIES[diversity + 1],
        novelty=NOVELTIES[novelty + 1],
        decision_token=b"",
        **how,
    )


def rules_action(
    scores: Mapping[str, float], content_type: str, mood: str, time_of_day: str
) -> int:
    """Returns the rules' action, 0 to 26. A score that is not there counts as neutral."""
    energy, diversity, novelty = (
        _level(rule, scores, content_type, mood, time_of_day) for rule in RULES.values()
    )
    return (energy * 3 + diversity) * 3 + novelty


def _level(
    rule: dict[str, Any],
    scores: Mapping[str, float],
    content_type: str,
    mood: str,
    time_of_day: str,
) -> int:
    score: int = rule["content_types"].get(content_type, 0)
    score += rule["moods"].get(mood, 0) + rule["times_of_day"].get(time_of_day, 0)
    for trait, weight in rule["traits"].items():
        value = scores.get(trait, NEUTRAL_SCORE)
        if value < LOW_TRAIT:
            score -= weight
        elif value >= HIGH_TRAIT:
            score += weight
    return int(score >= rule["middle"]) + int(score >= rule["top"])


def time_of_day(request: pb.GetRecommendationParamsRequest) -> TimeOfDay:
    """Returns the time of day of a request, given or by its timestamp."""
    if request.time_of_day:
        given: TimeOfDay = TIMES_OF_DAY[request.time_of_day]
        return given
    hour = (request.timestamp.seconds + request.utc_offset_minutes * 60) % 86400 // 3600
    if 5 <= hour < 12:
        return "morning"
    if 12 <= hour < 17:
        return "afternoon"
    return "evening" if 17 <= hour < 22 else "night"
