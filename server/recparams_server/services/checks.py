"""Checks of fields that several services have; violations are noted by the path of the field."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import types_pb2 as types
from recparams_rl.state import TRAITS
from recparams_server.contract.errors import Violations
from recparams_server.contract.vocabulary import Traits

LONGEST_USER_ID = 128
MOST_SECONDS = 253402300799
FUTURE_ALLOWED = timedelta(minutes=5)


def check_name(value: str, longest: int, path: str, violations: Violations) -> None:
    """Notes a name that is empty, too long, or holds a NUL."""
    if not 1 <= len(value) <= longest or "\x00" in value:
        violations.add(path, f"must have 1 to {longest} characters and no NUL")


def check_count(count: int, most: int, path: str, violations: Violations) -> bool:
    """Returns True if a repeated field has up to `most` entries; notes it otherwise.

    Without it the field must not be walked: a request has room for millions of entries.
    """
    if count > most:
        violations.add(path, f"must have up to {most} entries, not {count}")
    return count <= most


def check_personality(
    profile: types.PersonalityProfile, path: str, violations: Violations
) -> Traits:
    """Returns the five scores of a profile; notes those that are missing or out of range."""
    traits = (
        profile.openness,
        profile.conscientiousness,
        profile.extraversion,
        profile.agreeableness,
        profile.neuroticism,
    )
    for name, score in zip(TRAITS, traits, strict=True):
        # A score that is missing reads as 0.
        if score == 0.0 and not profile.HasField(name):  # type: ignore[arg-type]
            violations.add(f"{path}.{name}", "is required, from 0 to 100")
        elif not 0.0 <= score <= 100.0:
            violations.add(f"{path}.{name}", f"must be from 0 to 100, not {score:g}")
    return traits


def check_timestamp(stamp: Timestamp, path: str, violations: Violations) -> bool:
    """Returns True if a timestamp lies in the years 1970 to 9999; notes it otherwise."""
    valid = 0 <= stamp.seconds <= MOST_SECONDS and 0 <= stamp.nanos < 1_000_000_000
    if not valid:
        violations.add(path, "must lie in the years 1970 to 9999")
    return valid


def to_datetime(stamp: Timestamp) -> datetime:
    """Returns a checked timestamp as an aware datetime, to the microsecond."""
    return datetime.fromtimestamp(stamp.seconds, UTC) + timedelta(microseconds=stamp.nanos // 1000)
