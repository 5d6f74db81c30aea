"""Interactions as rows of PostgreSQL's binary COPY format.

Source: https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format". Each field is its
length in bytes and its value, big-endian; a length of -1 is null.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from struct import Struct

from recparams_rl.state import TRAITS
from recparams_server.contract.interaction import NewInteraction
from recparams_server.contract.vocabulary import Traits
from recparams_server.store.columns import POSTGRES_EPOCH

COLUMNS = (
    "interaction_id",
    "user_key",
    "occurred_at",
    "reactions",
    "content_type",
    "mood",
    "time_of_day",
    "action",
    *TRAITS,
    "completion_rate",
    "mood_change",
    "propensity",
    "policy_arm",
    "source",
    "model_version",
    "decision_id",
    "decided_at",
    "activation_id",
)
"""In the order of a row's fields."""

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"

_NULL = b"\xff\xff\xff\xff"
_UNKNOWN_TRAITS = _NULL * len(TRAITS)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = Struct(">hi").pack
_NEVER_NULL = Struct(">iqiq" + "ih" * 5).pack
_TRAITS = Struct(">" + "if" * len(TRAITS)).pack
_REAL, _SMALL, _BIG = Struct(">if").pack, Struct(">ih").pack, Struct(">iq").pack


def encode(
    interactions: Sequence[NewInteraction],
    keys: Mapping[str, int],
    profiles: Mapping[str, Traits],
) -> bytes:
    """Returns the rows of some interactions, without `HEADER` and `TRAILER`.

    Args:
        interactions: the interactions.
        keys: the user_key of every person among them, by user id.
        profiles: scores for interactions that have none, by user id.
    """
    return b"".join(
        [
            _row(one, keys[one.user_id], one.choice.traits or profiles.get(one.user_id))
            for one in interactions
        ]
    )


def _row(one: NewInteraction, user_key: int, traits: Traits | None) -> bytes:
    choice, name = one.choice, one.interaction_id.encode()
    version, decision, activation = choice.model_version, choice.decision_id, choice.activation_id
    return b"".join(
        (
            _FIRST(len(COLUMNS), len(name)),
            name,
            _NEVER_NULL(
                8,
                user_key,
                8,
                _microseconds(one.occurred_at),
                2,
                one.reactions,
                2,
                choice.content_type,
                2,
                choice.mood,
                2,
                choice.time_of_day,
                2,
                choice.action,
            ),
            _UNKNOWN_TRAITS if traits is None else _of_traits(traits),
            _NULL if one.completion_rate is None else _REAL(4, one.completion_rate),
            _NULL if one.mood_change is None else _REAL(4, one.mood_change),
            _NULL if choice.propensity is None else _REAL(4, choice.propensity),
            _NULL if choice.policy_arm is None else _SMALL(2, choice.policy_arm),
            _NULL if choice.source is None else _SMALL(2, choice.source),
            _NULL if version is None else _BIG(8, version),
            _NULL if decision is None else _BIG(8, decision),
            _NULL if choice.decided_at is None else _BIG(8, _microseconds(choice.decided_at)),
            _NULL if activation is None else _BIG(8, activation),
        )
    )


def _of_traits(traits: Traits) -> bytes:
    o, c, e, a, n = traits
    return _TRAITS(4, o, 4, c, 4, e, 4, a, 4, n)


def _microseconds(instant: datetime) -> int:
    return (instant - POSTGRES_EPOCH) // _MICROSECOND
