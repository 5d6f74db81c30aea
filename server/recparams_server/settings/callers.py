"""Callers with roles, and hashes of their secret keys."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "sha256:"
_FORM = f"name:role+role:{PREFIX}HEX or name:role+role:cn=NAME"


class Role(StrEnum):
    """The right to call a group of RPCs; `ADMINISTER` includes all others."""

    RECOMMEND = "recommend"
    RECORD = "record"
    TRAIN = "train"
    ADMINISTER = "administer"


@dataclass(frozen=True)
class Caller:
    """A caller, known by a key or by the common name of a client certificate.

    Attributes:
        name: its name in the log and in errors.
        roles: the groups of RPCs that it may call.
        key: SHA-256 digest of its key, or None.
        common_name: that of its certificate's subject, or None.
    """

    name: str
    roles: frozenset[Role]
    key: bytes | None = None
    common_name: str | None = None


class BlankKeyError(ValueError):
    """A hash of nothing, or of white space."""


def key_digest(key: str | bytes) -> bytes:
    """Returns the SHA-256 digest of a key, which is all that is kept of it.

    Keys are long and random, so they cannot be guessed from a fast hash as passwords can.
    """
    return hashlib.sha256(key if isinstance(key, bytes) else key.encode()).digest()


_BLANK_KEYS = ("", " ", "\n", "\r\n")
"""Of which hashes are made by accident, as where a variable is not set."""
_BLANK_DIGESTS = frozenset(map(key_digest, _BLANK_KEYS))


def key_hash(key: str) -> str:
    """Returns the digest of a key as settings have it: sha256: and 64 hexadecimal digits."""
    return PREFIX + key_digest(key).hex()


def parse_hash(text: str) -> bytes:
    """Returns the digest in a hash as settings have it.

    Raises ValueError on any other text, and BlankKeyError on the hash of a blank key.
    """
    try:
        digest = bytes.fromhex(text.removeprefix(PREFIX))
    except ValueError:
        digest = b""
    if not text.startswith(PREFIX) or len(digest) != hashlib.sha256().digest_size:
        raise ValueError(
            f"needs hashes as {PREFIX} and 64 hexadecimal digits: recparams new-key makes them"
        )
    if digest in _BLANK_DIGESTS:
        raise BlankKeyError("has the hash of a blank key: recparams new-key makes keys and hashes")
    return digest


def parse_callers(texts: Iterable[str]) -> tuple[Caller, ...]:
    """Returns the callers of a setting.

    Raises ValueError if one is malformed, or has the key or name of another.
    """
    callers = tuple(_parse_caller(text) for text in texts)
    credentials = [caller.key or caller.common_name for caller in callers]
    for caller, credential in zip(callers, credentials, strict=True):
        if credentials.count(credential) > 1:
            raise ValueError(f"{caller.name!r} has the key or name of another caller")
    return callers


def _parse_caller(text: str) -> Caller:
    name, _, rest = text.partition(":")
    roles, _, credential = rest.partition(":")
    if not name or not roles or not credential:
        # Not the text itself: somebody may have put a key there.
        raise ValueError(f"needs callers as {_FORM}")
    try:
        known = frozenset(Role(role) for role in roles.split("+"))
    except ValueError:
        raise ValueError(
            f"{name!r} has a role other than {', '.join(Role)} (joined by +)"
        ) from None
    common_name = credential.removeprefix("cn=")
    if common_name == credential:
        try:
            return Caller(name, known, key=parse_hash(credential))
        except BlankKeyError as failure:
            raise ValueError(f"{name!r} {failure}") from None
        except ValueError:
            raise ValueError(f"{name!r} needs a credential as in {_FORM}") from None
    if not common_name:
        raise ValueError(f"{name!r} needs the common name of a certificate after cn=")
    return Caller(name, known, common_name=common_name)
