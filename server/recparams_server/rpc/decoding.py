"""Decoding of requests in bounded time: sizes come first, and large messages are read in pieces."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from recparams_server.contract.errors import ServiceError, invalid
from recparams_server.rpc.methods import MethodPolicy
from recparams_server.turns import in_turns, turn

PIECE_BYTES = 64 * 1024
"""Messages up to this size are parsed at once, in whatever shape within some milliseconds."""
STRANGE_FIELDS = 16
"""Fields besides its entries that a large message may have, as those of a later contract."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10
_ENTRY_TAG = 1 << 3 | _BYTES
_ONE_BYTE = 0x80
"""Numbers below it take one byte."""

_M = TypeVar("_M", bound=Message)


def decoded(kind: type[_M], message: bytes, policy: MethodPolicy) -> _M:
    """Returns a message of a kind.

    Args:
        kind: the type of the request.
        message: the request, encoded.
        policy: has its limits.

    Raises INVALID_ARGUMENT if it is too large, or no such message.
    """
    request = kind()
    for piece in _pieces(kind, message, policy):
        _merge(request, piece)
    return request


async def decoded_in_turns(kind: type[_M], message: bytes, policy: MethodPolicy) -> _M:
    """Returns the same as `decoded`, and lets other calls have their turn between pieces."""
    if len(message) <= PIECE_BYTES:
        return decoded(kind, message, policy)
    # To find the pieces takes some tenths of a millisecond as well.
    await turn()
    request = kind()
    async for piece in in_turns(_pieces(kind, message, policy)):
        _merge(request, piece)
    return request


def _merge(request: Message, piece: bytes) -> None:
    try:
        request.MergeFromString(piece)
    except DecodeError:
        raise _undecodable(request.DESCRIPTOR.name) from None


def _undecodable(name: str) -> ServiceError:
    return invalid("request", f"is not a {name}")


def _pieces(kind: type[Message], message: bytes, policy: MethodPolicy) -> Iterable[bytes]:
    """Returns encoded messages that make up the whole when they are merged.

    Raises INVALID_ARGUMENT if the whole is too large, or has too many entries.
    """
    if len(message) > policy.most_bytes:
        raise invalid(
            "request",
            f"has {len(message)} bytes, where a {kind.DESCRIPTOR.name} has up to "
            f"{policy.most_bytes}",
        )
    if len(message) <= PIECE_BYTES or policy.most_entries is None:
        return (message,)
    # All of them before any is parsed: whoever sends too many is told that.
    return list(_split(kind, message, policy.most_entries))


def _split(kind: type[Message], message: bytes, most: int) -> Iterator[bytes]:
    """Yields pieces of a message of up to `most` entries, cut between its fields."""
    name = kind.DESCRIPTOR.fields_by_number[1].name
    start = position = fields = 0
    while position < len(message):
        before = position
        position = _after_entry(message, before) or _after_field(kind, message, before)
        fields += 1
        if fields > most + STRANGE_FIELDS:
            raise invalid(name, f"must have 1 to {most} entries, not more than {most}")
        if position - before > PIECE_BYTES:
            raise invalid(name, f"entry {fields - 1} has more than {PIECE_BYTES} bytes")
        if position - start > PIECE_BYTES:
            yield message[start:before]
            start = before
    yield message[start:position]


def _after_entry(message: bytes, position: int) -> int:
    """Returns the place at which an entry of less than 16 KiB ends; 0 if it is not plainly one."""
    if message[position] != _ENTRY_TAG or position + 2 >= len(message):
        return 0
    low, high = message[position + 1], message[position + 2]
    if low < _ONE_BYTE:
        end = position + 2 + low
    elif high < _ONE_BYTE:
        end = position + 3 + low - _ONE_BYTE + (high << 7)
    else:
        return 0
    return end if end <= len(message) else 0


def _after_field(kind: type[Message], message: bytes, position: int) -> int:
    """Returns the place at which the field ends that begins at a place."""
    tag, position = _varint(kind, message, position)
    wire = tag & 7
    if wire == _BYTES:
        length, position = _varint(kind, message, position)
        position += length
    elif wire == _VARINT:
        _, position = _varint(kind, message, position)
    elif wire in _FIXED_BYTES:
        position += _FIXED_BYTES[wire]
    else:
        raise _undecodable(kind.DESCRIPTOR.name)
    if position > len(message):
        raise _undecodable(kind.DESCRIPTOR.name)
    return position


def _varint(kind: type[Message], message: bytes, position: int) -> tuple[int, int]:
    """Returns a number in base 128, and the place at which it ends."""
    value = 0
    for shift, byte in enumerate(message[position : position + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value, position + shift + 1
    raise _undecodable(kind.DESCRIPTOR.name)
