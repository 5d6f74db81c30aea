"""Conversions between the client's dataclasses and the contract's messages."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import fields
from datetime import datetime
from numbers import Real
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_client.types import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    Recommendation,
    RecommendationParams,
    RecordResult,
)

_PARAM_NAMES = tuple(field.name for field in fields(RecommendationParams))


def enum_names(enum: Any, prefix: str) -> dict[int, str]:
    """Returns number -> name in lower case; the unspecified value has an empty name."""
    names = {number: name.removeprefix(prefix).lower() for name, number in enum.items()}
    return {**names, 0: ""}


CONTENT_TYPES = enum_names(types.ContentType, "CONTENT_TYPE_")
MOODS = enum_names(types.Mood, "MOOD_")
TIMES_OF_DAY = enum_names(types.TimeOfDay, "TIME_OF_DAY_")
REACTIONS = enum_names(types.Reaction, "REACTION_")
ENERGIES = enum_names(types.Energy, "ENERGY_")
DIVERSITIES = enum_names(types.Diversity, "DIVERSITY_")
NOVELTIES = enum_names(types.Novelty, "NOVELTY_")
ARMS = enum_names(pb.PolicyArm, "POLICY_ARM_")
SOURCES = enum_names(pb.DecisionSource, "DECISION_SOURCE_")
REASONS = enum_names(pb.FallbackReason, "FALLBACK_REASON_")


def _number(names: dict[int, str], what: str, name: str) -> Any:
    for number, known in names.items():
        if known == name and number:
            return number
    allowed = ", ".join(known for known in names.values() if known)
    raise ValueError(f"{what} must be one of {allowed}, not {name!r}")


def _stamp(moment: datetime, what: str) -> Timestamp:
    if moment.tzinfo is None:
        raise ValueError(f"{what} must be an aware datetime: give it a time zone")
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def profile_message(profile: PersonalityProfile) -> types.PersonalityProfile:
    """Returns scores as a message; the server checks their range."""
    return types.PersonalityProfile(**vars(profile))


def request_message(request: DecisionRequest) -> pb.GetRecommendationParamsRequest:
    """Returns a request as a message. Raises ValueError on an unknown name or a missing time."""
    message = pb.GetRecommendationParamsRequest(
        user_id=request.user_id,
        content_type=_number(CONTENT_TYPES, "content_type", request.content_type),
        mood=_number(MOODS, "mood", request.mood),
    )
    if request.personality is not None:
        message.personality.CopyFrom(profile_message(request.personality))
    if request.time_of_day is not None:
        message.time_of_day = _number(TIMES_OF_DAY, "time_of_day", request.time_of_day)
    elif request.timestamp is not None:
        message.timestamp.CopyFrom(_stamp(request.timestamp, "timestamp"))
        offset = request.timestamp.utcoffset()
        assert offset is not None  # noqa: S101 - an aware datetime has one
        message.utc_offset_minutes = round(offset.total_seconds() / 60)
    else:
        raise ValueError("time_of_day is required, or else timestamp")
    return message


def recommendation(response: pb.GetRecommendationParamsResponse) -> Recommendation:
    """Returns a response as a dataclass."""
    return Recommendation(
        params=RecommendationParams(*(getattr(response.params, name) for name in _PARAM_NAMES)),
        energy=ENERGIES[response.action.energy],
        diversity=DIVERSITIES[response.action.diversity],
        novelty=NOVELTIES[response.action.novelty],
        decision_token=response.decision_token,
        model_version=response.model_version,
        policy_arm=ARMS.get(response.policy_arm, ""),
        propensity=response.propensity,
        source=SOURCES.get(response.source, ""),
        fallback_reason=REASONS.get(response.fallback_reason, "unknown"),
    )


def batch_message(
    requests: Iterable[DecisionRequest],
) -> pb.BatchGetRecommendationParamsRequest:
    """Returns requests as one message. Raises ValueError as `request_message`."""
    return pb.BatchGetRecommendationParamsRequest(
        requests=[request_message(request) for request in requests]
    )


def record_message(interactions: Iterable[Interaction]) -> pb.RecordInteractionsRequest:
    """Returns interactions as one message.

    Raises ValueError on an unknown reaction or an empty token, and as `check_interaction`.
    """
    return pb.RecordInteractionsRequest(
        interactions=[_interaction_message(interaction) for interaction in interactions]
    )


def check_interaction(interaction: Interaction) -> None:
    """Checks that every field has a value of its type, whatever that value is.

    Raises:
        TypeError: one has not; the message says which.
        ValueError: occurred_at has no time zone.
    """
    if not isinstance(interaction, Interaction):
        raise TypeError(f"an Interaction is needed, not {type(interaction).__name__}")
    for name, kind in (("interaction_id", str), ("user_id", str), ("decision_token", bytes)):
        _check_type(name, getattr(interaction, name), kind)
    # A str, which is a sequence of str too, is none of these.
    _check_type("reactions", interaction.reactions, (tuple, list, Set))
    for reaction in interaction.reactions:
        _check_type("a reaction", reaction, str)
    for name in ("completion_rate", "mood_change"):
        value = getattr(interaction, name)
        if isinstance(value, bool) or not isinstance(value, Real | None):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if interaction.occurred_at is not None:
        _check_type("occurred_at", interaction.occurred_at, datetime)
        _stamp(interaction.occurred_at, "occurred_at")


def _check_type(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        wanted = kind.__name__ if isinstance(kind, type) else kind[0].__name__
        raise TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def _interaction_message(interaction: Interaction) -> pb.Interaction:
    check_interaction(interaction)
    if not interaction.decision_token:
        raise ValueError("a fallback has no decision_token: there is nothing to record")
    return pb.Interaction(
        interaction_id=interaction.interaction_id,
        user_id=interaction.user_id,
        decision_token=interaction.decision_token,
        reactions=[_number(REACTIONS, "reaction", name) for name in interaction.reactions],
        completion_rate=_float(interaction.completion_rate),
        mood_change=_float(interaction.mood_change),
        occurred_at=None
        if interaction.occurred_at is None
        else _stamp(interaction.occurred_at, "occurred_at"),
    )


def _float(value: float | None) -> float | None:
    """Returns a number of any kind, numpy's or a fraction too, as protobuf takes it."""
    return None if value is None else float(value)


def record_result(response: pb.RecordInteractionsResponse) -> RecordResult:
    """Returns a response as a dataclass."""
    return RecordResult(response.recorded, response.duplicates)


def profiles_message(
    profiles: Mapping[str, PersonalityProfile],
) -> pb.PutPersonalityProfilesRequest:
    """Returns profiles by user id as one message."""
    return pb.PutPersonalityProfilesRequest(
        profiles=[
            pb.UserPersonalityProfile(user_id=user_id, personality=profile_message(profile))
            for user_id, profile in profiles.items()
        ]
    )
