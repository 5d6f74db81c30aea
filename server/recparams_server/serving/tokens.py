"""Decision tokens: encrypted and authenticated records of decisions.

A token is a format number followed by a fixed-size record that is sealed for the user id
(recparams_server/serving/sealing.py). It lets a reaction name its decision without the server
storing decisions, and cannot be read, made up, changed, or used for somebody else. Callers that
decide by themselves make tokens of another format (recparams_server/serving/delegated_tokens.py);
`TokenCodec.read` reads both.
"""

import hashlib
import math
import struct
from collections.abc import Iterable
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_server.contract.vocabulary import (
    ARM_NAMES,
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    SOURCE_NUMBERS,
    TIME_OF_DAY_NAMES,
    Traits,
)
from recparams_server.serving import delegated_tokens
from recparams_server.serving.sealing import TAG_BYTES, Sealing

UInt64 = Annotated[int, "Q"]
UInt32 = Annotated[int, "I"]
UInt8 = Annotated[int, "B"]
Float32 = Annotated[float, "f"]
"""Types of a record's fields, with their format characters, which struct and numpy share."""


class Decision(NamedTuple):
    """A decision as its token states it; the fields of the record, in their order.

    Numbers are the contract's enum numbers where it has one.

    Attributes:
        decision_id: random, 63 bits.
        decided_at: milliseconds since 1970 UTC.
        model_version: 0 for the rules.
        propensity: above 0 and up to 1.
        content_type, mood, time_of_day: the context.
        action: 0 to 26.
        arm: the policy arm.
        source: the decision source.
        openness, conscientiousness, extraversion, agreeableness, neuroticism: the scores, 0 to
            100; NaN where there was no profile.
        activation: the activation in force, 0 before any.
    """

    decision_id: UInt64
    decided_at: UInt64
    model_version: UInt32
    propensity: Float32
    content_type: UInt8
    mood: UInt8
    time_of_day: UInt8
    action: UInt8
    arm: UInt8
    source: UInt8
    openness: Float32
    conscientiousness: Float32
    extraversion: Float32
    agreeableness: Float32
    neuroticism: Float32
    activation: UInt32

    @property
    def traits(self) -> Traits:
        """The five scores."""
        return self[10:15]


FORMAT = b"\x04"
DECISION_ID_BITS = 63
_FORMATS = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Decision, include_extras=True).items()
}
RECORD = np.dtype([(name, f"<{character}") for name, character in _FORMATS.items()])
"""The record as numpy lays it out, for many decisions at once; the bytes are those of `_RECORD`."""
_RECORD = struct.Struct("<" + "".join(_FORMATS.values()))
pack_record = _RECORD.pack
"""Returns the record of a decision, from its fields in their order. Raises struct.error."""

_PURPOSE = b"recparams token\0"
TOKEN_BYTES = len(FORMAT) + TAG_BYTES + _RECORD.size
SEALED_BYTES = delegated_tokens.OVERHEAD_BYTES + _RECORD.size


class InvalidTokenError(ValueError):
    """A token that this deployment did not issue for this person. The message says why."""


class TokenCodec:
    """Issues and reads tokens with one secret key.

    Args:
        key: the secret that tokens are issued and read with.
        others: earlier secrets, whose tokens are read too.
    """

    def __init__(self, key: bytes, others: Iterable[bytes] = ()) -> None:
        self._key = key
        self._sealing = Sealing(hashlib.sha512(_PURPOSE + key).digest(), FORMAT)
        self._others = [TokenCodec(other) for other in others]

    def seal(self, user: bytes, record: bytes) -> bytes:
        """Returns a token of `TOKEN_BYTES` bytes.

        Args:
            user: the user id in UTF-8.
            record: what the token states, made by `pack_record`.
        """
        return FORMAT + self._sealing.seal(user, record)

    def issue_all(self, users: list[bytes], records: NDArray[np.void]) -> list[bytes]:
        """Returns the tokens of n people.

        Args:
            users: their ids in UTF-8.
            records: their decisions, dtype `RECORD`, shape (n,).
        """
        rows = records.view(np.uint8).reshape(len(records), RECORD.itemsize)
        return [FORMAT + sealed for sealed in self._sealing.seal_all(users, rows)]

    def delegate(self, now: int, told: delegated_tokens.Told) -> delegated_tokens.DelegatedKey:
        """Returns a key for a caller that decides by itself.

        Args:
            now: the start of its lifetime, seconds since 1970.
            told: the exploration that the caller is told.
        """
        return delegated_tokens.delegate(self._key, now, told)

    def open_all(
        self, tokens: list[bytes], user_ids: list[str]
    ) -> tuple[NDArray[np.void], NDArray[np.bool_]]:
        """Returns the decisions of those of n tokens that this server issued with its own key.

        Returns:
            Decisions, dtype `RECORD`, shape (n,), and where there is one, shape (n,). The other
            tokens are for `read`.
        """
        decisions = np.zeros(len(tokens), dtype=RECORD)
        is_open = np.array(
            [len(one) == TOKEN_BYTES and one[:1] == FORMAT for one in tokens], dtype=np.bool_
        )
        places = np.flatnonzero(is_open)
        sealed = np.frombuffer(b"".join([tokens[i] for i in places]), dtype=np.uint8)
        users = [user_ids[i].encode() for i in places]
        records, is_open[places] = self._sealing.open_all(
            users, sealed.reshape(-1, TOKEN_BYTES)[:, len(FORMAT) :]
        )
        decisions[places] = records.view(RECORD)[:, 0]
        return decisions, is_open

    def read(self, token: bytes, user_id: str) -> Decision:
        """Returns the decision of a token.

        Raises InvalidTokenError unless it was issued by this deployment for this person.
        """
        user = user_id.encode()
        if len(token) == TOKEN_BYTES and token[:1] == FORMAT:
            for codec in (self, *self._others):
                record = codec._sealing.open(user, token[len(FORMAT) :])
                if record is not None:
                    return _decision(record)
        elif len(token) == SEALED_BYTES and token[:1] == delegated_tokens.FORMAT:
            for codec in (self, *self._others):
                sealed = delegated_tokens.open_sealed(codec._key, token, user)
                if sealed is not None:
                    return _checked(_decision(sealed.record), sealed)
        else:
            raise InvalidTokenError("is not a decision token of this service")
        raise InvalidTokenError("was not issued by this service for this user_id")


def _decision(record: bytes) -> Decision:
    return Decision._make(_RECORD.unpack(record))


def _checked(decision: Decision, sealed: delegated_tokens.Sealed) -> Decision:
    """Returns a decision that a caller made. Raises InvalidTokenError if it is impossible."""
    apart = delegated_tokens.CLOCKS_APART_MS
    if not sealed.issued - apart <= decision.decided_at <= sealed.expires + apart:
        raise InvalidTokenError("was made outside the lifetime of its key")
    unknown = all(math.isnan(score) for score in decision.traits)
    if not (
        decision.decision_id < 1 << DECISION_ID_BITS
        and 0.0 < decision.propensity <= 1.0
        and decision.content_type in CONTENT_TYPE_NAMES
        and decision.mood in MOOD_NAMES
        and decision.time_of_day in TIME_OF_DAY_NAMES
        and decision.action < N_ACTIONS
        and decision.arm in ARM_NAMES
        and decision.source in SOURCE_NUMBERS
        and (unknown or all(0.0 <= score <= 100.0 for score in decision.traits))
    ):
        raise InvalidTokenError("says what no decision can be")
    return decision
