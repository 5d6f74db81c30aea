"""Requests in wire form, read without making messages of them where they are plain.

A plain request is one with a user id, five scores, content type, mood and time of day and nothing
else, encoded in the order of its fields as every protobuf library does. What follows the user id
is then of one length, with tags in known places. Anything else is for the general reader
(`decoded`), which gives the same answer for plain requests too.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from server.contract.vocabulary import ContextNumbers, Traits

_EXAMPLE = pb.GetRecommendationParamsRequest(
    user_id="u",
    personality=types.PersonalityProfile(
        openness=1, conscientiousness=1, extraversion=1, agreeableness=1, neuroticism=1
    ),
    content_type=types.CONTENT_TYPE_MUSIC,
    mood=types.MOOD_NEUTRAL,
    time_of_day=types.TIME_OF_DAY_MORNING,
).SerializeToString()[3:]
"""What follows the user id."""
_REST = len(_EXAMPLE)
_USER_TAG = 0x0A
_ONE_BYTE = 0x80
"""Lengths and enum numbers below it take one byte."""

_VALUES = struct.Struct("<2x xf xf xf xf xf xB xB xB")
_TAG_PLACES = np.array([0, 1, *range(2, 28, 5), 29, 31])
_FIRST_TAGS, _SCORE_TAGS, _LAST_TAGS = _EXAMPLE[:2], _EXAMPLE[2:28:5], _EXAMPLE[29::2]
_TAGS = np.frombuffer(_EXAMPLE, dtype=np.uint8)[_TAG_PLACES]


def read_plain(message: bytes) -> tuple[bytes, Traits, ContextNumbers] | None:
    """User id, scores and context numbers of a plain request; None where it is not one.

    The values are as they were sent, in range or not.
    """
    start = len(message) - _REST
    if (
        start < 3
        or start >= _ONE_BYTE
        or message[0] != _USER_TAG
        or message[1] != start - 2
        or message[start : start + 2] != _FIRST_TAGS
        or message[start + 2 : start + 28 : 5] != _SCORE_TAGS
        or message[start + 29 :: 2] != _LAST_TAGS
    ):
        return None
    user = message[2:start]
    if not (user.isascii() or _is_text(user)) or 0 in user:
        return None
    o, c, e, a, n, content_type, mood, time_of_day = _VALUES.unpack_from(message, start)
    if content_type | mood | time_of_day >= _ONE_BYTE:
        return None
    return user, (o, c, e, a, n), (content_type, mood, time_of_day)


def read_plain_batch(
    message: bytes,
) -> tuple[list[bytes], NDArray[np.float32], NDArray[np.uint8]] | None:
    """The same for a batch of n plain requests; None where any is not one.

    Returns:
        User ids, scores (n, 5) and context numbers (n, 3).
    """
    users, rests = [], []
    position, end = 0, len(message)
    try:
        while position < end:
            start = position + 4
            length, own = message[position + 1], message[position + 3]
            rest = start + own
            if (
                message[position] != _USER_TAG
                or message[position + 2] != _USER_TAG
                or length >= _ONE_BYTE
                or own == 0
                or length != own + 2 + _REST
            ):
                return None
            users.append(message[start:rest])
            position = rest + _REST
            rests.append(message[rest:position])
        rows = np.frombuffer(b"".join(rests), dtype=np.uint8).reshape(len(rests), _REST)
    except (IndexError, ValueError):
        return None
    if not all(map(_is_text, users)) or 0 in b"".join(users):
        return None
    if not (rows[:, _TAG_PLACES] == _TAGS).all():
        return None
    scores = rows[:, 2:27].reshape(-1, 5, 5)[:, :, 1:].copy().view("<f4")[:, :, 0]
    numbers = rows[:, 28::2]
    if (numbers >= _ONE_BYTE).any():
        return None
    return users, scores, numbers


def _is_text(user: bytes) -> bool:
    try:
        user.decode()
    except UnicodeDecodeError:
        return False
    return True
