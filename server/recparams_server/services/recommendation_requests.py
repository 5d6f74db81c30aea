"""Parsers of requests for decisions, which note every invalid field by its path."""

from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.state import time_of_day
from recparams_server.contract.errors import Violations
from recparams_server.contract.vocabulary import (
    TIME_OF_DAY_NUMBERS,
    ContextNumbers,
    Contexts,
    Traits,
)
from recparams_server.services.checks import (
    LONGEST_USER_ID,
    check_name,
    check_personality,
    check_timestamp,
)

LARGEST_OFFSET = 840


def check_context(
    content_type: int,
    mood: int,
    time: int,
    contexts: Contexts,
    path: str,
    violations: Violations,
) -> ContextNumbers:
    """Returns a context; notes each of its fields that this deployment does not have."""
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


def read_time_of_day(
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
    time = request.time_of_day or read_time_of_day(
        0,
        request.timestamp if request.HasField("timestamp") else None,
        request.utc_offset_minutes,
        "timestamp",
        path,
        violations,
    )
    return traits, check_context(
        request.content_type, request.mood, time, contexts, path, violations
    )
