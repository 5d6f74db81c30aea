"""Plain requests, read from their bytes without making messages of them; batches into arrays.

A plain request is one with a user id, five scores, content type, mood and time of day and nothing
else, encoded in the order of its fields as every protobuf library does. What follows the user id
is then of one length, with tags in known places. Other requests are read through protobuf, with the
same answers, which for plain ones takes half as long again.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_server.contract.vocabulary import ContextNumbers, Traits

_EXAMPLE = pb.GetRecommendationParamsRequest(
    user_id="u",
    personality=types.PersonalityProfile(
        openness=1, conscientiousness=1, extraversion=1, agreeableness=1, neuroticism=1
    ),
    content_type=types.CONTENT_TYPE_MUSIC,
    mood=types.MOOD_NEUTRAL,
    time_of_day=types.TIME_OF_DAY_MORNING,
).SerializeToString()[3:]
"""Encoded fields that follow the user id."""
_REST = len(_EXAMPLE)
_USER_TAG = 0x0A
_ONE_BYTE = 0x80
"""Lengths and enum numbers below it take one byte."""

_TAG_PLACES = np.array([0, 1, *range(2, 28, 5), 29, 31])
_TAGS = np.frombuffer(_EXAMPLE, dtype=np.uint8)[_TAG_PLACES]
_SCORES = struct.Struct("<2x xf xf xf xf xf 6x")
# As one number: its tags, and the highest bits of enum numbers, which are 0.
_FIXED = bytearray(_REST)
for _place in _TAG_PLACES:
    _FIXED[_place] = 0xFF
for _place in (28, 30, 32):
    _FIXED[_place] = _ONE_BYTE
_MASK = int.from_bytes(_FIXED, "little")
_MASKED = int.from_bytes(_EXAMPLE, "little") & _MASK


def read_plain(message: bytes) -> tuple[bytes, Traits, ContextNumbers] | None:
    """Reads an encoded GetRecommendationParamsRequest.

    Returns:
        User id in UTF-8, scores and context numbers, as they were sent, in range or not; None if
        the request is not plain.
    """
    start = len(message) - _REST
    if (
        not 3 <= start < _ONE_BYTE
        or message[0] != _USER_TAG
        or message[1] != start - 2
        or int.from_bytes(message[start:], "little") & _MASK != _MASKED
    ):
        return None
    user = message[2:start]
    if not (user.isascii() or _is_text(user)) or 0 in user:
        return None
    return user, _SCORES.unpack_from(message, start), (message[-5], message[-3], message[-1])


def read_plain_batch(
    message: bytes,
) -> tuple[list[bytes], NDArray[np.float32], NDArray[np.uint8]] | None:
    """Reads an encoded BatchGetRecommendationParamsRequest of n plain requests.

    Returns:
        User ids in UTF-8, scores (n, 5) and context numbers (n, 3), as they were sent, in range or
        not; None if any request is not plain.
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
