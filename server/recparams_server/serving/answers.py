"""Answers in wire form, concatenated from parts that protobuf encoded beforehand.

Concatenating encoded messages of one type gives the encoding of the message with the fields of all
of them (https://protobuf.dev/programming-guides/encoding/, "Last One Wins"). The parts go in the
order of their fields, so an answer is byte for byte what `SerializeToString` gives.
"""

import struct
from functools import cache

from recparams.v1 import recommendation_pb2 as pb
from recparams_server.contract.vocabulary import ACTION_MESSAGES, PARAMS_MESSAGES
from recparams_server.serving.tokens import TOKEN_BYTES

_Response = pb.GetRecommendationParamsResponse
_TOKEN_TAG = _Response(decision_token=bytes(TOKEN_BYTES)).SerializeToString()[:-TOKEN_BYTES]
_PROPENSITY_TAG = _Response(propensity=1.0).SerializeToString()[:-8]
_BATCH_TAG = b"\x0a"

ACTION_PARTS = tuple(
    _Response(params=params, action=action).SerializeToString() + _TOKEN_TAG
    for params, action in zip(PARAMS_MESSAGES, ACTION_MESSAGES, strict=True)
)
"""By action: params, action and the tag of the token, which follows."""

PROPENSITY = struct.Struct("<d")
"""The propensity, between a `version_and_arm_part` and a `source_part`."""


def version_and_arm_part(version: int, arm: pb.PolicyArm.ValueType) -> bytes:
    """Encodes version and arm, and the tag of the propensity, which follows."""
    return _Response(model_version=version, policy_arm=arm).SerializeToString() + _PROPENSITY_TAG


@cache
def source_part(source: pb.DecisionSource.ValueType, reason: pb.FallbackReason.ValueType) -> bytes:
    """Encodes source and fallback reason."""
    return _Response(source=source, fallback_reason=reason).SerializeToString()


def batch_answer(answers: list[bytes]) -> bytes:
    """Returns the encoded BatchGetRecommendationParamsResponse of encoded answers."""
    return b"".join(
        [part for answer in answers for part in (batch_entry_prefix(len(answer)), answer)]
    )


@cache
def batch_entry_prefix(length: int) -> bytes:
    """Returns tag and length of an answer in a batch's answer, for a length of 1 to 16383."""
    if length < 0x80:
        return _BATCH_TAG + bytes([length])
    return _BATCH_TAG + bytes([length & 0x7F | 0x80, length >> 7])
