"""Decision tokens: what was decided, for whom, authenticated.

A token is a fixed-size record followed by the first 16 bytes of HMAC-SHA256 over the record and
the user id. It lets a reaction name its decision without the server storing decisions, and cannot
be made up, changed, or used for somebody else.
"""

import hmac
import math
import random
import struct
from typing import NamedTuple

FORMAT_VERSION = 2
MAC_BYTES = 16
_RECORD = struct.Struct("<BQQIfBBBBBB5fI")
TOKEN_BYTES = _RECORD.size + MAC_BYTES

Traits = tuple[float, float, float, float, float]
UNKNOWN_TRAITS: Traits = (math.nan, math.nan, math.nan, math.nan, math.nan)


class InvalidTokenError(ValueError):
    """A token that this deployment did not issue for this person. The message says why."""


class Decision(NamedTuple):
    """What a token says. Numbers are the contract's enum numbers where it has one.

    Attributes:
        decision_id: random, 63 bits.
        decided_at: milliseconds since 1970 UTC.
        model_version: 0 for the rules.
        propensity: above 0 and up to 1, float32.
        content_type, mood, time_of_day: the context.
        action: 0 to 26.
        arm: the policy arm.
        source: how the choice was made.
        traits: five scores as float32; NaN where there was no profile.
        activation: the activation in force, 0 before any.
    """

    decision_id: int
    decided_at: int
    model_version: int
    propensity: float
    content_type: int
    mood: int
    time_of_day: int
    action: int
    arm: int
    source: int
    traits: Traits
    activation: int


class TokenCodec:
    """Issues and reads tokens with one secret key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(
        self,
        user_id: str,
        decided_at: int,
        model_version: int,
        propensity: float,
        content_type: int,
        mood: int,
        time_of_day: int,
        action: int,
        arm: int,
        source: int,
        traits: Traits,
        activation: int,
    ) -> bytes:
        """A token of `TOKEN_BYTES` bytes. Arguments as in `Decision`."""
        record = _RECORD.pack(
            FORMAT_VERSION,
            random.getrandbits(63),
            decided_at,
            model_version,
            propensity,
            content_type,
            mood,
            time_of_day,
            action,
            arm,
            source,
            *traits,
            activation,
        )
        return record + self._mac(record, user_id)

    def read(self, token: bytes, user_id: str) -> Decision:
        """What a token says. Raises InvalidTokenError unless it was issued for this person."""
        if len(token) != TOKEN_BYTES or token[0] != FORMAT_VERSION:
            raise InvalidTokenError("is not a decision token of this service")
        record = token[: _RECORD.size]
        if not hmac.compare_digest(self._mac(record, user_id), token[_RECORD.size :]):
            raise InvalidTokenError("was not issued by this service for this user_id")
        fields = _RECORD.unpack(record)
        return Decision._make((*fields[1:11], fields[11:16], fields[16]))

    def _mac(self, record: bytes, user_id: str) -> bytes:
        return hmac.digest(self._key, record + user_id.encode(), "sha256")[:MAC_BYTES]
