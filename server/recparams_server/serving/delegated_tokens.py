"""Keys for callers that decide by themselves, and the tokens that they seal.

A key is derived from the deployment's token key and the key's id, which holds its lifetime and the
exploration that its holder was told, so nothing is stored. A token is a format number, the key's
id, and the record of recparams_server/serving/tokens.py, sealed as that of the server's own tokens
(recparams_server/serving/sealing.py) with the key's id before it.
"""

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from recparams_rl.arms import RULES_VERSION
from recparams_rl.exploration import Exploration
from recparams_rl.policy import Policy
from recparams_server.serving.sealing import TAG_BYTES, Sealing

FORMAT = b"\x05"
LIFETIME_SECONDS = 24 * 3600
"""Lifetime of a key. Watchers are given a new key after half of it."""

CLOCKS_APART_MS = 5 * 60 * 1000
"""Milliseconds by which a caller's clock may be off."""

_ID = struct.Struct("<IIfB3s")
_EVERYWHERE, _BY_DRAWS = 1, 2
"""Flags of what was told."""

OVERHEAD_BYTES = len(FORMAT) + _ID.size + TAG_BYTES
_PURPOSE = b"recparams delegated token key\0"


@dataclass(frozen=True)
class Told:
    """Exploration, as callers that decide by themselves are told it.

    Attributes:
        epsilon: probability of a random action where the rules are served, 0 to 1.
        everywhere: True if it is that of every version; False if each has its own.
        by_draws: True if versions with draws explore by them too.
    """

    epsilon: float
    everywhere: bool
    by_draws: bool = False

    @classmethod
    def of(cls, exploration: Exploration, rules: Policy) -> Self:
        """Returns what a server tells callers.

        Args:
            exploration: how it explores.
            rules: the rules as this server serves them.
        """
        if exploration.epsilon is None:
            return cls(rules.epsilon, False, exploration.by_draws)
        return cls(exploration.epsilon, True, exploration.by_draws)

    def epsilon_of(self, version: int, policy: Policy) -> float:
        """Returns the probability of a random action where a version is served, by its policy."""
        return self.epsilon if self.everywhere or version == RULES_VERSION else policy.epsilon


@dataclass(frozen=True)
class DelegatedKey:
    """A key to seal tokens with.

    Attributes:
        id: the key's lifetime, the exploration told and a random part, 16 bytes.
        key: the secret, 32 bytes.
        expires_at: seconds since 1970.
        told: the exploration that its holder is told.
    """

    id: bytes
    key: bytes
    expires_at: int
    told: Told


def delegate(master: bytes, now: int, told: Told) -> DelegatedKey:
    """Returns a new key, valid for `LIFETIME_SECONDS`.

    Args:
        master: the deployment's token key.
        now: start of its lifetime, seconds since 1970.
        told: the exploration that its holder is told.
    """
    expires_at = now + LIFETIME_SECONDS
    flags = _EVERYWHERE * told.everywhere + _BY_DRAWS * told.by_draws
    id_ = _ID.pack(now, expires_at, told.epsilon, flags, secrets.token_bytes(3))
    return DelegatedKey(id_, _derived(master, id_), expires_at, told)


def _derived(master: bytes, id_: bytes) -> bytes:
    return hmac.digest(hashlib.sha256(_PURPOSE + master).digest(), id_, "sha256")


@lru_cache(maxsize=1024)
def _sealing(master: bytes, id_: bytes) -> Sealing:
    return Sealing(_derived(master, id_), id_)


@dataclass(frozen=True)
class Sealed:
    """The contents of an opened token.

    Attributes:
        record: the record, as recparams_server/serving/tokens.py packs it.
        issued, expires: the lifetime of the token's key, milliseconds since 1970.
    """

    record: bytes
    issued: int
    expires: int


def open_sealed(master: bytes, token: bytes, user: bytes) -> Sealed | None:
    """Opens a token; returns None if it was sealed with another key or for another user.

    Args:
        master: the deployment's token key.
        token: a whole token, longer than `OVERHEAD_BYTES`.
        user: the user id in UTF-8.
    """
    start = len(FORMAT) + _ID.size
    id_ = token[len(FORMAT) : start]
    record = _sealing(master, id_).open(user, token[start:])
    if record is None:
        return None
    issued, expires, _, _, _ = _ID.unpack(id_)
    return Sealed(record, 1000 * issued, 1000 * expires)


def told_of(token: bytes) -> Told | None:
    """Returns the exploration that the caller was told who sealed a token.

    None if the server issued it.

    Args:
        token: one that `TokenCodec.read` takes.
    """
    if token[:1] != FORMAT:
        return None
    _, _, epsilon, flags, _ = _ID.unpack_from(token, len(FORMAT))
    return Told(epsilon, bool(flags & _EVERYWHERE), bool(flags & _BY_DRAWS))
