"""Parsers of interactions, which note every invalid field by its path."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import RecommendationParams, infer_action
from recparams_rl.reward import EXCLUSIVE_REACTIONS, reaction_mask
from recparams_rl.state import TRAITS
from recparams_server.contract.errors import Violations
from recparams_server.contract.interaction import (
    UNKNOWN,
    NewInteractions,
    no_fields,
    to_instant,
    to_microseconds,
)
from recparams_server.contract.vocabulary import (
    REACTION_NAMES,
    UNKNOWN_TRAITS,
    Contexts,
    action_index,
)
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
from recparams_server.serving.tokens import RECORD, Decision, InvalidTokenError, TokenCodec

LONGEST_INTERACTION_ID = 64
MOST_REACTIONS = 32
"""Entries of one interaction; the kinds are fewer, and one may be sent twice."""
_BITS = {number: reaction_mask([name]) for number, name in REACTION_NAMES.items()}
_EXCLUSIVE = {pair: reaction_mask(pair) for pair in EXCLUSIVE_REACTIONS}
_CONTEXT = ("content_type", "mood", "time_of_day")
_LOGGED = (*_CONTEXT, "action", *TRAITS)
"""What a decision that was logged elsewhere says, in this order."""
_AS_STATED = (*_LOGGED, "propensity", "model_version", "source", "decision_id")
"""The fields that tokens state by the same names."""


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


def parse_interactions(
    messages: Sequence[pb.Interaction],
    first: int,
    rules: InteractionRules,
    violations: Violations,
    delegated: list[DelegatedDecision],
) -> NewInteractions:
    """Returns interactions as columns, after noting their invalid fields.

    A decision that its caller made is added to `delegated`, to be held against what was served.
    With violations the result has no meaning.

    Args:
        messages: one or more interactions that follow each other in a request.
        first: the place in the request of the first of them.
        rules: what they are checked with.
        violations: takes note of invalid fields.
        delegated: takes decisions of callers.
    """
    paths = [f"interactions[{i}]." for i in range(first, first + len(messages))]
    ids = [one.interaction_id for one in messages]
    user_ids = [one.user_id for one in messages]
    _check_names(ids, LONGEST_INTERACTION_ID, "interaction_id", paths, violations)
    _check_names(user_ids, LONGEST_USER_ID, "user_id", paths, violations)
    fields = no_fields(len(messages))
    fields["occurred_at"] = to_microseconds(rules.now)
    for i in _places_of("occurred_at", messages):
        fields["occurred_at"][i] = _occurred_at(messages[i], rules, paths[i], violations)
    for name, least in (("completion_rate", 0.0), ("mood_change", -1.0)):
        for i in _places_of(name, messages):
            fields[name][i] = _share(messages[i], name, least, paths[i], violations)
    fields["reactions"] = _reactions(messages, paths, violations)
    decisions, are_own = rules.tokens.open_all([one.decision_token for one in messages], user_ids)
    are_old = 1000 * decisions["decided_at"].astype(np.int64) < _earliest_decision(rules)
    for i in np.flatnonzero(are_old & are_own).tolist():
        violations.add(f"{paths[i]}decision_token", _too_old(rules))
    _decide(fields, are_own, decisions[are_own])
    for i in np.flatnonzero(~are_own).tolist():
        _choose(fields[i : i + 1], messages[i], rules, paths[i], violations, delegated)
    return NewInteractions(ids, user_ids, fields)


def _places_of(name: str, messages: Sequence[pb.Interaction]) -> list[int]:
    """Returns the places of the messages that have a field."""
    return [i for i, one in enumerate(messages) if one.HasField(name)]  # type: ignore[arg-type]


def _check_names(
    values: Sequence[str], longest: int, name: str, paths: Sequence[str], violations: Violations
) -> None:
    """Does `check_name` of each, in a third of the time where all are valid."""
    lengths = set(map(len, values))
    if min(lengths) < 1 or max(lengths) > longest or "\x00" in "".join(values):
        for value, path in zip(values, paths, strict=True):
            check_name(value, longest, f"{path}{name}", violations)


def _occurred_at(
    message: pb.Interaction, rules: InteractionRules, path: str, violations: Violations
) -> int:
    """Returns the given instant in microseconds since 1970."""
    where = f"{path}occurred_at"
    if not check_timestamp(message.occurred_at, where, violations):
        return 0
    occurred_at = to_datetime(message.occurred_at)
    if occurred_at > rules.now + FUTURE_ALLOWED:
        violations.add(where, "lies more than 5 minutes in the future")
    if occurred_at < rules.now - rules.retention:
        violations.add(where, f"lies more than {rules.retention.days} days back, past retention")
    return to_microseconds(occurred_at)


def _reactions(
    messages: Sequence[pb.Interaction], paths: Sequence[str], violations: Violations
) -> list[int]:
    """Returns the masks of the reactions."""
    given = [one.reactions for one in messages]
    # One reaction that is known needs no other check.
    masks = [_BITS.get(one[0], 0) if len(one) == 1 else 0 for one in given]
    return [
        mask or _mask(one, message, path, violations)
        for mask, one, message, path in zip(masks, given, messages, paths, strict=True)
    ]


def _mask(given: Sequence[int], message: pb.Interaction, path: str, violations: Violations) -> int:
    mask = 0
    if not check_count(len(given), MOST_REACTIONS, f"{path}reactions", violations):
        return 0
    for position, number in enumerate(given):
        bit = _BITS.get(number)
        if bit is None:
            violations.add(f"{path}reactions[{position}]", f"there is no reaction {number}")
        else:
            mask |= bit
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
) -> float:
    value = float(getattr(message, name))
    if not least <= value <= 1.0:
        violations.add(f"{path}{name}", f"must be from {least:g} to 1, not {value:g}")
        return 0.0
    return value


def _earliest_decision(rules: InteractionRules) -> int:
    """Returns the instant before which a decision is too old, in microseconds since 1970."""
    return to_microseconds(rules.now - rules.token_max_age)


def _too_old(rules: InteractionRules) -> str:
    return f"is older than {rules.token_max_age.days} days"


def _decide(
    fields: NDArray[np.void], places: NDArray[np.bool_], decisions: NDArray[np.void]
) -> None:
    """Fills in decisions as tokens state them."""
    found = fields[places]
    for name in _AS_STATED:
        found[name] = decisions[name]
    found["policy_arm"] = decisions["arm"]
    found["decided_at"] = 1000 * decisions["decided_at"].astype(np.int64)
    activations = decisions["activation"].astype(np.int64)
    found["activation_id"] = np.where(activations == 0, UNKNOWN, activations)
    # A profile that is stored later gives the row a state in which this choice was not made.
    found["propensity"][np.isnan(decisions["openness"])] = np.nan
    fields[places] = found


def _choose(
    fields: NDArray[np.void],
    message: pb.Interaction,
    rules: InteractionRules,
    path: str,
    violations: Violations,
    delegated: list[DelegatedDecision],
) -> None:
    """Fills in the decision of one interaction, whose token `TokenCodec.open_all` did not open."""
    kind = message.WhichOneof("decision")
    if kind == "decision_token":
        decision = _token_decision(message, fields, rules, path, violations, delegated)
        if decision is not None:
            stated = np.array([tuple(decision)], dtype=RECORD)
            _decide(fields, np.array([True]), stated)
    elif kind == "logged_decision":
        path = f"{path}logged_decision."
        _log(fields, message.logged_decision, rules.contexts, path, violations)
    else:
        violations.add(f"{path}decision_token", "is required, or else logged_decision")


def _token_decision(
    message: pb.Interaction,
    fields: NDArray[np.void],
    rules: InteractionRules,
    path: str,
    violations: Violations,
    delegated: list[DelegatedDecision],
) -> Decision | None:
    where = f"{path}decision_token"
    try:
        token = rules.tokens.read(message.decision_token, message.user_id)
    except InvalidTokenError as failure:
        violations.add(where, str(failure))
        return None
    decided_at = datetime.fromtimestamp(token.decided_at / 1000, UTC)
    told = told_of(message.decision_token)
    if 1000 * token.decided_at < _earliest_decision(rules):
        violations.add(where, _too_old(rules))
    elif told is not None and decided_at > rules.now + FUTURE_ALLOWED:
        violations.add(where, "was made more than 5 minutes in the future")
    elif told is not None:
        if to_instant(int(fields["occurred_at"][0])) < decided_at - FUTURE_ALLOWED:
            violations.add(f"{path}occurred_at", "lies more than 5 minutes before its decision")
        delegated.append(DelegatedDecision(where, message.user_id, token, told))
    return token


def _log(
    fields: NDArray[np.void],
    logged: pb.LoggedDecision,
    contexts: Contexts,
    path: str,
    violations: Violations,
) -> None:
    """Fills in a decision that was logged elsewhere, unless there is a violation."""
    before = len(violations)
    traits = UNKNOWN_TRAITS
    if logged.HasField("personality"):
        traits = check_personality(logged.personality, f"{path}personality", violations)
    instant = Timestamp(seconds=int(fields["occurred_at"][0]) // 1_000_000)
    time = read_time_of_day(
        logged.time_of_day, instant, logged.utc_offset_minutes, "occurred_at", path, violations
    )
    context = check_context(logged.content_type, logged.mood, time, contexts, path, violations)
    action = _logged_action(logged, path, violations)
    if len(violations) == before:
        values = (*context, action, *traits)
        for name, value in zip(_LOGGED, values, strict=True):
            fields[name] = value


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
