"""Decision tokens: what was decided, for whom, authenticated.

A token is a fixed-size record followed by 16 bytes of keyed BLAKE2b (RFC 7693) over the record and
the user id. It lets a reaction name its decision without the server storing decisions, and cannot
be made up, changed, or used for somebody else.
"""

import hashlib
import hmac
import math
import random
import struct
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 3
MAC_BYTES = 16
RECORD = np.dtype(
    [
        ("format", "u1"),
        ("decision_id", "<u8"),
        ("decided_at", "<u8"),
        ("model_version", "<u4"),
        ("propensity", "<f4"),
        ("content_type", "u1"),
        ("mood", "u1"),
        ("time_of_day", "u1"),
        ("action", "u1"),
        ("arm", "u1"),
        ("source", "u1"),
        ("traits", "<f4", 5),
        ("activation", "<u4"),
    ]
)
"""What a token says, as `Decision`; `_RECORD` packs the same bytes."""
_RECORD = struct.Struct("<BQQIfBBBBBB5fI")
_PERSON = b"recparams token\0"
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
    """Issues and reads tokens with one secret key.

    Args:
        key: the secret.
        others: keys whose tokens are read too.
    """

    def __init__(self, key: bytes, others: Iterable[bytes] = ()) -> None:
        # BLAKE2b takes 64 bytes of key at most. Its state after the key is kept, and copied.
        self._keyed = hashlib.blake2b(
            key=hashlib.sha256(key).digest(), digest_size=MAC_BYTES, person=_PERSON
        )
        self._others = [TokenCodec(other) for other in others]

    def issue(
        self,
        user: bytes,
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
        """A token of `TOKEN_BYTES` bytes for a user id in UTF-8. Arguments as in `Decision`."""
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
        return record + self._mac(record, user)

    def issue_all(
        self, users: list[bytes], records: NDArray[np.void], generator: np.random.Generator
    ) -> list[bytes]:
        """Tokens of n people.

        Args:
            users: their ids in UTF-8.
            records: of kind `RECORD`, shape (n,); format and decision_id are filled in.
            generator: draws the decision ids.
        """
        records["format"] = FORMAT_VERSION
        records["decision_id"] = generator.integers(1 << 63, size=len(records), dtype=np.uint64)
        data, size = records.tobytes(), RECORD.itemsize
        return [
            (record := data[i * size : (i + 1) * size]) + self._mac(record, user)
            for i, user in enumerate(users)
        ]

    def read(self, token: bytes, user_id: str) -> Decision:
        """What a token says. Raises InvalidTokenError unless it was issued for this person."""
        if len(token) != TOKEN_BYTES or token[0] != FORMAT_VERSION:
            raise InvalidTokenError("is not a decision token of this service")
        record, mac, user = token[: _RECORD.size], token[_RECORD.size :], user_id.encode()
        codecs = (self, *self._others)
        if not any(hmac.compare_digest(codec._mac(record, user), mac) for codec in codecs):
            raise InvalidTokenError("was not issued by this service for this user_id")
        fields = _RECORD.unpack(record)
        return Decision._make((*fields[1:11], fields[11:16], fields[16]))

    def _mac(self, record: bytes, user: bytes) -> bytes:
        mac = self._keyed.copy()
        mac.update(record + user)
        return mac.digest()
