"""The rule-based policy, for when the server does not answer: the server's rules, as data."""

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
from recparams_client.types import Recommendation, RecommendationParams

NEUTRAL_SCORE = 50.0
_REASONS = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "client_deadline",
    grpc.StatusCode.UNAVAILABLE: "client_unavailable",
    grpc.StatusCode.CANCELLED: "client_unavailable",
    # More calls at a time than the server takes.
    grpc.StatusCode.RESOURCE_EXHAUSTED: "client_unavailable",
}


def reason_or_raise(raised: Any) -> str:
    """Why the rules may answer. Raises RecParamsError where the server refused the request."""
    reason = _REASONS.get(raised.code())
    if reason is None:
        raise from_rpc_error(raised) from None
    return reason


def recommend(request: pb.GetRecommendationParamsRequest, reason: str) -> Recommendation:
    """The rules' answer to a request, marked as a fallback."""
    energy, diversity, novelty = (_level(rule, request) for rule in RULES.values())
    params: Any = PARAMS[(energy * 3 + diversity) * 3 + novelty]
    return Recommendation(
        params=RecommendationParams(**params),
        energy=ENERGIES[energy + 1],
        diversity=DIVERSITIES[diversity + 1],
        novelty=NOVELTIES[novelty + 1],
        decision_token=b"",
        model_version=0,
        policy_arm="rule_based",
        propensity=1.0,
        source="rule_based",
        fallback_reason=reason,
    )


def _level(rule: dict[str, Any], request: pb.GetRecommendationParamsRequest) -> int:
    score: int = rule["content_types"].get(CONTENT_TYPES[request.content_type], 0)
    score += rule["moods"].get(MOODS[request.mood], 0)
    score += rule["times_of_day"].get(_time_of_day(request), 0)
    for trait, weight in rule["traits"].items():
        known = request.HasField("personality")
        value = getattr(request.personality, trait) if known else NEUTRAL_SCORE
        if value < LOW_TRAIT:
            score -= weight
        elif value >= HIGH_TRAIT:
            score += weight
    return int(score >= rule["middle"]) + int(score >= rule["top"])


def _time_of_day(request: pb.GetRecommendationParamsRequest) -> str:
    if request.time_of_day:
        return TIMES_OF_DAY[request.time_of_day]
    hour = (request.timestamp.seconds + request.utc_offset_minutes * 60) % 86400 // 3600
    if 5 <= hour < 12:
        return "morning"
    if 12 <= hour < 17:
        return "afternoon"
    return "evening" if 17 <= hour < 22 else "night"
