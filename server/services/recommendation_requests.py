"""Parsers of requests, which note every invalid field by its path."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isnan

from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from rl.action import RecommendationParams, infer_action
from rl.reward import EXCLUSIVE_REACTIONS, reaction_mask
from rl.state import time_of_day
from server.contract.errors import Violations
from server.contract.interaction import Choice, NewInteraction
from server.contract.vocabulary import (
    REACTION_NAMES,
    TIME_OF_DAY_NUMBERS,
    ContextNumbers,
    Contexts,
    Traits,
    action_index,
)
from server.services.checks import (
    FUTURE_ALLOWED,
    LONGEST_USER_ID,
    check_count,
    check_name,
    check_personality,
    check_timestamp,
    to_datetime,
)
from server.serving.tokens import InvalidTokenError, TokenCodec

LONGEST_INTERACTION_ID = 64
LARGEST_OFFSET = 840
MOST_REACTIONS = 32
"""Entries of one interaction; the kinds are fewer, and one may be sent twice."""


def _check_context(
    content_type: int,
    mood: int,
    time: int,
    contexts: Contexts,
    path: str,
    violations: Violations,
) -> ContextNumbers:
    numbers = (content_type, mood or types.MOOD_NEUTRAL, time)
    if numbers in contexts:
        return numbers
    for position, (name, value) in enumerate(
        (("content_type", content_type), ("mood", numbers[1]), ("time_of_day", time))
    ):
        if value == 0 and name == "content_type":
            violations.add(f"{path}{name}", "is required")
        elif value and all(known[position] != value for known in contexts):
            violations.add(f"{path}{name}", f"has no value {value} in this deployment")
    return numbers


def _time_of_day(
    given: int,
    instant: Timestamp | None,
    offset: int,
    instant_path: str,
    path: str,
    violations: Violations,
) -> int:
    """Returns the given time of day, or that of an instant at an offset from UTC in minutes."""
    if given:
        return given
    if not -LARGEST_OFFSET <= offset <= LARGEST_OFFSET:
        violations.add(f"{path}utc_offset_minutes", f"must be within {LARGEST_OFFSET} of 0")
        return 0
    if instant is None:
        violations.add(f"{path}time_of_day", f"is required, or else {instant_path}")
        return 0
    if not check_timestamp(instant, f"{path}{instant_path}", violations):
        return 0
    return TIME_OF_DAY_NUMBERS[time_of_day((instant.seconds + offset * 60) % 86400 // 3600)]


def parse_request(
    request: pb.GetRecommendationParamsRequest,
    contexts: Contexts,
    path: str,
    violations: Violations,
) -> tuple[Traits | None, ContextNumbers]:
    """Returns the trait scores of a request, None without any, and its context.

    Args:
        request: the request.
        contexts: the contexts of this deployment.
        path: prefix of the paths of its fields.
        violations: takes note of invalid fields.
    """
    check_name(request.user_id, LONGEST_USER_ID, f"{path}user_id", violations)
    traits = None
    if request.HasField("personality"):
        traits = check_personality(request.personality, f"{path}personality", violations)
    time = request.time_of_day or _time_of_day(
        0,
        request.timestamp if request.HasField("timestamp") else None,
        request.utc_offset_minutes,
        "timestamp",
        path,
        violations,
    )
    return traits, _check_context(
        request.content_type, request.mood, time, contexts, path, violations
    )


@dataclass(frozen=True)
class InteractionRules:
    """The limits and the token reader that interactions are checked with.

    Attributes:
        tokens: reads decision tokens.
        contexts: the contexts of this deployment.
        now: the server's time.
        retention: the greatest age of an interaction.
        token_max_age: the greatest age of a decision.
    """

    tokens: TokenCodec
    contexts: Contexts
    now: datetime
    retention: timedelta
    token_max_age: timedelta


def parse_interaction(
    message: pb.Interaction, rules: InteractionRules, path: str, violations: Violations
) -> NewInteraction | None:
    """Returns a checked interaction, or None after noting its invalid fields."""
    own = Violations()
    check_name(message.interaction_id, LONGEST_INTERACTION_ID, f"{path}interaction_id", own)
    check_name(message.user_id, LONGEST_USER_ID, f"{path}user_id", own)
    occurred_at = _occurred_at(message, rules, path, own)
    reactions = _reactions(message, path, own)
    completion_rate = _share(message, "completion_rate", 0.0, path, own)
    mood_change = _share(message, "mood_change", -1.0, path, own)
    choice = _choice(message, occurred_at, rules, path, own)
    if choice is None or own:
        violations.extend(own)
        return None
    return NewInteraction(
        interaction_id=message.interaction_id,
        user_id=message.user_id,
        occurred_at=occurred_at,
        reactions=reactions,
        completion_rate=completion_rate,
        mood_change=mood_change,
        choice=choice,
    )


def _occurred_at(
    message: pb.Interaction, rules: InteractionRules, path: str, violations: Violations
) -> datetime:
    if not message.HasField("occurred_at"):
        return rules.now
    where = f"{path}occurred_at"
    if not check_timestamp(message.occurred_at, where, violations):
        return rules.now
    occurred_at = to_datetime(message.occurred_at)
    if occurred_at > rules.now + FUTURE_ALLOWED:
        violations.add(where, "lies more than 5 minutes in the future")
    if occurred_at < rules.now - rules.retention:
        violations.add(where, f"lies more than {rules.retention.days} days back, past retention")
    return occurred_at


def _reactions(message: pb.Interaction, path: str, violations: Violations) -> int:
    if not check_count(len(message.reactions), MOST_REACTIONS, f"{path}reactions", violations):
        return 0
    names = []
    for position, number in enumerate(message.reactions):
        name = REACTION_NAMES.get(number)
        if name is None:
            violations.add(f"{path}reactions[{position}]", f"there is no reaction {number}")
        else:
            names.append(name)
    for one, other in EXCLUSIVE_REACTIONS:
        if one in names and other in names:
            violations.add(f"{path}reactions", f"{one} and {other} exclude each other")
    if not (
        message.reactions or message.HasField("completion_rate") or message.HasField("mood_change")
    ):
        violations.add(
            f"{path}reactions",
            "is required, or else completion_rate or mood_change (an impression means nothing "
            "happened)",
        )
    return reaction_mask(names)


def _share(
    message: pb.Interaction, name: str, least: float, path: str, violations: Violations
) -> float | None:
    if not message.HasField(name):  # type: ignore[arg-type]
        return None
    value = float(getattr(message, name))
    if not least <= value <= 1.0:
        violations.add(f"{path}{name}", f"must be from {least:g} to 1, not {value:g}")
    return value


def _choice(
    message: pb.Interaction,
    occurred_at: datetime,
    rules: InteractionRules,
    path: str,
    violations: Violations,
) -> Choice | None:
    kind = message.WhichOneof("decision")
    if kind == "decision_token":
        return _token_choice(message, rules, f"{path}decision_token", violations)
    if kind == "logged_decision":
        return _logged_choice(
            message.logged_decision, occurred_at, rules, f"{path}logged_decision.", violations
        )
    violations.add(f"{path}decision_token", "is required, or else logged_decision")
    return None


def _token_choice(
    message: pb.Interaction, rules: InteractionRules, path: str, violations: Violations
) -> Choice | None:
    try:
        token = rules.tokens.read(message.decision_token, message.user_id)
    except InvalidTokenError as failure:
        violations.add(path, str(failure))
        return None
    decided_at = datetime.fromtimestamp(token.decided_at / 1000, UTC)
    if rules.now - decided_at > rules.token_max_age:
        violations.add(path, f"is older than {rules.token_max_age.days} days")
    return Choice(
        content_type=token.content_type,
        mood=token.mood,
        time_of_day=token.time_of_day,
        action=token.action,
        traits=None if isnan(token.traits[0]) else token.traits,
        # A profile that is stored later gives the row a state in which this choice was not made.
        propensity=None if isnan(token.traits[0]) else token.propensity,
        model_version=token.model_version,
        policy_arm=token.arm,
        source=token.source,
        decision_id=token.decision_id,
        decided_at=decided_at,
        activation_id=token.activation or None,
    )


def _logged_choice(
    logged: pb.LoggedDecision,
    occurred_at: datetime,
    rules: InteractionRules,
    path: str,
    violations: Violations,
) -> Choice | None:
    traits = None
    if logged.HasField("personality"):
        traits = check_personality(logged.personality, f"{path}personality", violations)
    instant = Timestamp(seconds=int(occurred_at.timestamp()))
    time = _time_of_day(
        logged.time_of_day, instant, logged.utc_offset_minutes, "occurred_at", path, violations
    )
    content_type, mood, time = _check_context(
        logged.content_type, logged.mood, time, rules.contexts, path, violations
    )
    action = _logged_action(logged, path, violations)
    return Choice(content_type, mood, time, action, traits)


def _logged_action(logged: pb.LoggedDecision, path: str, violations: Violations) -> int:
    kind = logged.WhichOneof("choice")
    if kind == "action":
        index = action_index(logged.action)
        if index is None:
            violations.add(f"{path}action", "needs energy, diversity and novelty")
        return index or 0
    if kind == "params":
        given = {field.name: value for field, value in logged.params.ListFields()}
        try:
            return infer_action(RecommendationParams(**given)).index
        except ValueError as failure:
            violations.add(f"{path}params", str(failure))
            return 0
    violations.add(f"{path}action", "is required, or else params")
    return 0
