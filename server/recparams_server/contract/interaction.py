"""Interactions that were checked, on their way to the store, as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.state import TRAITS

FIELDS = np.dtype(
    [
        ("occurred_at", "i8"),
        ("reactions", "i2"),
        ("content_type", "i2"),
        ("mood", "i2"),
        ("time_of_day", "i2"),
        ("action", "i2"),
        *((trait, "f4") for trait in TRAITS),
        ("completion_rate", "f4"),
        ("mood_change", "f4"),
        ("propensity", "f4"),
        ("policy_arm", "i2"),
        ("source", "i2"),
        ("model_version", "i8"),
        ("decision_id", "i8"),
        ("decided_at", "i8"),
        ("activation_id", "i8"),
    ]
)
"""The numbers of an interaction, by their columns in the store. What is not known or was not
reported is NaN, or -1 of an integer.

Instants are microseconds since 1970 UTC, `reactions` a mask with bit i for the i-th of
`recparams_rl.reward.REACTIONS`, context, arm and source enum numbers of the contract, `action` an
index from 0 to 26, scores from 0 to 100, and version 0 the rules.
"""
UNKNOWN = -1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: datetime) -> int:
    """Returns an aware instant as `FIELDS` has it."""
    return (instant - _EPOCH) // _MICROSECOND


def to_instant(microseconds: int) -> datetime:
    """Returns the instant, in UTC, that `FIELDS` has as microseconds."""
    return _EPOCH + timedelta(microseconds=microseconds)


def no_fields(count: int) -> NDArray[np.void]:
    """Returns the fields, dtype `FIELDS`, of so many interactions of which nothing is known."""
    nothing = tuple(UNKNOWN if FIELDS[name].kind == "i" else np.nan for name in FIELDS.names or ())
    return np.full(count, np.array(nothing, dtype=FIELDS))


def are_unknown(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns True where a column of `FIELDS` has nothing."""
    unknown: NDArray[np.bool_] = np.isnan(values) if values.dtype.kind == "f" else values < 0
    return unknown


@dataclass(frozen=True)
class NewInteractions:
    """Valid interactions.

    Attributes:
        ids: the interaction_ids; one that is stored already is a duplicate.
        user_ids: 1 to 128 characters each.
        fields: their numbers, dtype `FIELDS`, shape (n,).
    """

    ids: list[str]
    user_ids: list[str]
    fields: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Returns the interactions of some parts, of which there is one at least."""
        return cls(
            [one for part in parts for one in part.ids],
            [one for part in parts for one in part.user_ids],
            np.concatenate([part.fields for part in parts]),
        )

    def at(self, places: Sequence[int]) -> Self:
        """Returns those at some places."""
        return type(self)(
            [self.ids[place] for place in places],
            [self.user_ids[place] for place in places],
            self.fields[np.array(places, dtype=np.intp)],
        )

    def distinct(self) -> Self:
        """Returns those whose id none before them has."""
        first = dict(zip(reversed(self.ids), range(len(self) - 1, -1, -1), strict=True))
        return self if len(first) == len(self) else self.at(sorted(first.values()))
