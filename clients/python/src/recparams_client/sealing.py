"""Decision tokens made by the caller, as recparams_server/serving/delegated_tokens.py reads them.

A token is the byte 5, the key's id (16 bytes), a tag (16) and the encrypted record (54), which is
little-endian without padding: decision id (uint64, random, 63 bits), milliseconds since 1970
(uint64), model version (uint32), propensity (float32), content type, mood, time of day, action,
arm, source (a byte each, the contract's numbers; the action 0 to 26), five scores (float32, NaN
where unknown), activation (uint32).

    tag    = BLAKE2b-128(key = key[:16], id + record + user id in UTF-8)
    stream = BLAKE2b-512(key = key[16:], tag)
    sealed = record xor the beginning of stream
"""

import random
import struct
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

FORMAT = b"\x05"
TAG_BYTES = 16
_pack = struct.Struct("<QQIfBBBBBB5fI").pack
_number = int.from_bytes

Scores = tuple[float, float, float, float, float]


@dataclass(frozen=True)
class SealingKey:
    """A key of the server's for sealing tokens.

    Attributes:
        id: 16 bytes.
        key: the secret, 32 bytes.
        expires_at: seconds since 1970 after which decisions need another one.
    """

    id: bytes
    key: bytes
    expires_at: float

    # Hashes that have taken in the key: to copy one is quicker than to begin with the key again.
    @cached_property
    def tagging(self) -> blake2b:
        """The hash of a tag, before the record and the user id."""
        return blake2b(self.id, key=self.key[:16], digest_size=TAG_BYTES)

    @cached_property
    def streaming(self) -> blake2b:
        """The hash of a key stream, before the tag."""
        return blake2b(key=self.key[16:])


def pack(
    decided_at: int,
    model_version: int,
    propensity: float,
    context: tuple[int, int, int],
    action: int,
    arm: int,
    source: int,
    scores: Scores,
    activation: int,
) -> bytes:
    """Returns the record of a decision, with a new decision id; the module has its layout."""
    # One by one: to call it with starred tuples takes a third longer.
    content_type, mood, time_of_day = context
    openness, conscientiousness, extraversion, agreeableness, neuroticism = scores
    return _pack(
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
        openness,
        conscientiousness,
        extraversion,
        agreeableness,
        neuroticism,
        activation,
    )


def seal(key: SealingKey, user: bytes, record: bytes) -> bytes:
    """Returns the token of a record, for a user id in UTF-8."""
    tagging, streaming = key.tagging.copy(), key.streaming.copy()
    tagging.update(record)
    tagging.update(user)
    tag = tagging.digest()
    streaming.update(tag)
    size = len(record)
    sealed = _number(record, "little") ^ _number(streaming.digest()[:size], "little")
    return FORMAT + key.id + tag + sealed.to_bytes(size, "little")
