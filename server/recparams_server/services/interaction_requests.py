"""Parsers of interactions, which note every invalid field by its path."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isnan

from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import RecommendationParams, infer_action
from recparams_rl.reward import EXCLUSIVE_REACTIONS, reaction_mask
from recparams_server.contract.errors import Violations
from recparams_server.contract.interaction import Choice, NewInteraction
from recparams_server.contract.vocabulary import REACTION_NAMES, Contexts, action_index
from recparams_server.services.checks import (
    FUTURE_ALLOWED,
    LONGEST_USER_ID,
    check_count,
    check_name,
    check_personality,
    check_timestamp,
    to_datetime,
)
from recparams_server.services.recommendation_requests import check_context, read_time_of_day
from recparams_server.serving.delegated_decisions import DelegatedDecision
from recparams_server.serving.delegated_tokens import told_of
from recparams_server.serving.tokens import InvalidTokenError, TokenCodec

LONGEST_INTERACTION_ID = 64
MOST_REACTIONS = 32
"""Entries of one interaction; the kinds are fewer, and one may be sent twice."""
_BITS = {number: reaction_mask([name]) for number, name in REACTION_NAMES.items()}
_EXCLUSIVE = {pair: reaction_mask(pair) for pair in EXCLUSIVE_REACTIONS}


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
    message: pb.Interaction,
    rules: InteractionRules,
    path: str,
    violations: Violations,
    delegated: list[DelegatedDecision],
) -> NewInteraction | None:
    """Returns a checked interaction, or None after noting its invalid fields.

    A decision that its caller made is added to `delegated`, to be held against what was served.
    """
    before = len(violations)
    interaction_id, user_id = message.interaction_id, message.user_id
    check_name(interaction_id, LONGEST_INTERACTION_ID, f"{path}interaction_id", violations)
    check_name(user_id, LONGEST_USER_ID, f"{path}user_id", violations)
    occurred_at = _occurred_at(message, rules, path, violations)
    reactions = _reactions(message, path, violations)
    completion_rate = _share(message, "completion_rate", 0.0, path, violations)
    mood_change = _share(message, "mood_change", -1.0, path, violations)
    choice = _choice(message, occurred_at, rules, path, violations, delegated)
    if choice is None or len(violations) > before:
        return None
    return NewInteraction(
        interaction_id, user_id, occurred_at, reactions, completion_rate, mood_change, choice
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
    given, mask = message.reactions, 0
    if not check_count(len(given), MOST_REACTIONS, f"{path}reactions", violations):
        return 0
    for position, number in enumerate(given):
        bit = _BITS.get(number)
        if bit is None:
            violations.add(f"{path}reactions[{position}]", f"there is no reaction {number}")
        else:
            mask |= bit
    if len(given) > 1:
        for (one, other), both in _EXCLUSIVE.items():
            if mask & both == both:
                violations.add(f"{path}reactions", f"{one} and {other} exclude each other")
    if not (given or message.HasField("completion_rate") or message.HasField("mood_change")):
        violations.add(
            f"{path}reactions",
            "is required, or else completion_rate or mood_change (an impression means nothing "
            "happened)",
        )
    return mask


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
    delegated: list[DelegatedDecision],
) -> Choice | None:
    kind = message.WhichOneof("decision")
    if kind == "decision_token":
        return _token_choice(message, occurred_at, rules, path, violations, delegated)
    if kind == "logged_decision":
        return _logged_choice(
            message.logged_decision, occurred_at, rules, f"{path}logged_decision.", violations
        )
    violations.add(f"{path}decision_token", "is required, or else logged_decision")
    return None


def _token_choice(
    message: pb.Interaction,
    occurred_at: datetime,
    rules: InteractionRules,
    path: str,
    violations: Violations,
    delegated: list[DelegatedDecision],
) -> Choice | None:
    where = f"{path}decision_token"
    try:
        token = rules.tokens.read(message.decision_token, message.user_id)
    except InvalidTokenError as failure:
        violations.add(where, str(failure))
        return None
    decided_at = datetime.fromtimestamp(token.decided_at / 1000, UTC)
    told = told_of(message.decision_token)
    if rules.now - decided_at > rules.token_max_age:
        violations.add(where, f"is older than {rules.token_max_age.days} days")
    elif told is not None and decided_at > rules.now + FUTURE_ALLOWED:
        violations.add(where, "was made more than 5 minutes in the future")
    elif told is not None:
        if occurred_at < decided_at - FUTURE_ALLOWED:
            violations.add(f"{path}occurred_at", "lies more than 5 minutes before its decision")
        delegated.append(DelegatedDecision(where, message.user_id, token, told))
    unknown = isnan(token.openness)
    # By position, since this is done for every interaction.
    return Choice(
        token.content_type,
        token.mood,
        token.time_of_day,
        token.action,
        None if unknown else token.traits,
        # A profile that is stored later gives the row a state in which this choice was not made.
        None if unknown else token.propensity,
        token.model_version,
        token.arm,
        token.source,
        token.decision_id,
        decided_at,
        token.activation or None,
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
    time = read_time_of_day(
        logged.time_of_day, instant, logged.utc_offset_minutes, "occurred_at", path, violations
    )
    content_type, mood, time = check_context(
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
