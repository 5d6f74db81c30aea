"""What the fuzz tests share: any message of a descriptor in wire form, and calls of raw bytes.

Messages are written byte by byte, because a protobuf library would refuse much of what a hostile
caller can send: text that is no UTF-8, fields that nobody knows, both sides of a oneof.
"""

import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import Default
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection
from hypothesis import strategies as st

from recparams_server.app import SERVICES
from recparams_server.rpc.methods import Kind, method_policy

Draw = Callable[[Any], Any]

LIBRARY = (health.SERVICE_NAME, reflection.SERVICE_NAME)
"""Services that come with gRPC; theirs decode requests in gRPC's own way."""
METHODS = [
    method for name in (*SERVICES, *LIBRARY) for method in Default().FindServiceByName(name).methods
]
"""Every RPC of a server, by its descriptor."""


def kind_of(method: MethodDescriptor) -> Kind:
    """Returns how long a method may last; of gRPC's own, one lasts without end."""
    if method.containing_service.full_name in LIBRARY:
        return Kind.ENDLESS if method.name == "Watch" else Kind.NORMAL
    return method_policy(method).kind


VARINT, FIXED64, BYTES, GROUP, GROUP_END, FIXED32 = 0, 1, 2, 3, 4, 5
_FIXED = {
    FieldDescriptor.TYPE_DOUBLE: (FIXED64, "<d"),
    FieldDescriptor.TYPE_FLOAT: (FIXED32, "<f"),
}
_FLOATS = (0.0, -0.0, -1.0, 0.1, 100.1, 1e-45, 3.5e38, float("nan"), float("inf"), -float("inf"))
_WHOLE = (0, 2, 3, 127, 841, 3651, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
_TEXTS = (
    b"",
    b"ada",
    b"1",
    b"next",
    b"canary",
    b"a\x00b",
    b"\xff\xfe",
    b"\xed\xa0\x80",  # half of a surrogate pair
    b"\xf0\x9f\x92\xa5" * 50,
    b"' OR 1=1; DROP TABLE users; --",
    b"%s%n{0}{user}",
    b"../../etc/passwd",
    b"\r\n{}\x1b[2J",
    b"9" * 18,
    b"x" * 129,
    b"y" * 70_000,
)
_SPACE = b'{"bins": 2, "content_types": ["music"], "moods": ["calm"], "times_of_day": ["morning"]}'
_FILES = (
    b"{}",
    b"[" * 100_000,
    b"[1]",
    b'{"q_table": {}}',
    b"{\"q_table\": {\"(0, 0, 0, 0, 0, 'music', 'calm', 'morning')\": {}}}",
    b'{"q_table": {"%b": {}}}' % (b"(" * 5000),
    b'{"q_table": {"' + b"z" * 70_000 + b'": 0}}',
    b'{"q_table": {}, "format": "' + b"\xc3\xbc" * 20_000 + b'"}',
    b'{"q_table": {}, "hyperparameters": {"learning_rate": "x"}}',
    b'{"q_table": {}, "hyperparameters": {"learning_rate": NaN}}',
    b'{"q_table": {}, "visit_counts": {}, "space": ' + _SPACE + b"}",
    b'{"q_table": {}, "space": ' + _SPACE.replace(b"calm", b"\\ud800") + b"}",
    b'{"q_table": {}, "space": ' + _SPACE.replace(b"calm", b"y" * 70_000) + b"}",
    b'{"q_table": {}, "space": ' + _SPACE.replace(b"2", b"1e9") + b"}",
    b'{"q_table": {}, "space": ' + _SPACE.replace(b"2", b"999999999") + b"}",
)
_TIMES = (0, -1, -62135596800, 253402300799, 253402300800, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Known:
    """What a caller of a real server has in hand.

    Attributes:
        token: a decision token of the user.
        now: seconds since 1970.
        user: a user id.
        number: what every field for a fraction takes, 0 to 1.
    """

    token: bytes
    now: int
    user: bytes = b"ada"
    number: float = 0.5


def varint(value: int) -> bytes:
    """A whole number below 2**64, negative ones as 64 bits, in base 128."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, kind: int, payload: bytes) -> bytes:
    """One field; lengths are added where the kind has them."""
    length = varint(len(payload)) if kind == BYTES else b""
    return varint(number << 3 | kind) + length + payload


def nested(depth: int) -> bytes:
    """Groups within groups of a field that nobody knows."""
    return varint(1000 << 3 | GROUP) * depth + varint(1000 << 3 | GROUP_END) * depth


def fine(descriptor: Descriptor, known: Known, name: str) -> bytes:
    """A message with every field set to what most fields would take."""
    if descriptor.full_name == "google.protobuf.Timestamp":
        return field(1, VARINT, varint(known.now - 60))
    # Of a oneof the last one counts: the first is written last.
    return b"".join(_fine_field(one, known, name) for one in reversed(descriptor.fields))


def _fine_field(one: FieldDescriptor, known: Known, name: str) -> bytes:
    if one.message_type is not None:
        return field(one.number, BYTES, fine(one.message_type, known, name))
    if one.type in _FIXED:
        kind, form = _FIXED[one.type]
        return field(one.number, kind, struct.pack(form, known.number))
    if one.type == FieldDescriptor.TYPE_BYTES:
        return field(one.number, BYTES, known.token)
    if one.type == FieldDescriptor.TYPE_STRING:
        text = {"interaction_id": name, "request_id": name, "step": "next", "page_token": "9"}
        return field(one.number, BYTES, text.get(one.name, "").encode() or known.user)
    return field(one.number, VARINT, varint(1))


def _value(draw: Draw, one: FieldDescriptor, known: Known) -> bytes:
    """A field with a value that somebody may stumble over."""
    if one.message_type is not None:
        return field(one.number, BYTES, _message(draw, one.message_type, known))
    if one.type in _FIXED:
        kind, form = _FIXED[one.type]
        value = draw(st.sampled_from(_FLOATS) | st.floats(width=32 if form == "<f" else 64))
        return field(one.number, kind, _packed(form, value))
    if one.type == FieldDescriptor.TYPE_BYTES:
        return field(one.number, BYTES, draw(_blobs(known)))
    if one.type == FieldDescriptor.TYPE_STRING:
        return field(one.number, BYTES, draw(st.sampled_from(_TEXTS) | st.binary(max_size=80)))
    values = _TIMES if one.containing_type.name == "Timestamp" else _WHOLE
    number = varint(draw(st.sampled_from(values) | st.integers(-(2**63), 2**63 - 1)))
    if one.is_repeated and draw(st.booleans()):
        return field(one.number, BYTES, number * draw(st.integers(0, 40)))
    return field(one.number, VARINT, number)


def _packed(form: str, value: float) -> bytes:
    try:
        return struct.pack(form, value)
    except OverflowError:
        return struct.pack(form, float("inf"))


def _blobs(known: Known) -> Any:
    """Decision tokens, true and with a bit turned; files of a model, whole and cut; neither."""

    def turned(bit: int) -> bytes:
        token = bytearray(known.token)
        token[bit // 8] ^= 1 << bit % 8
        return bytes(token)

    files = st.sampled_from(_FILES) | st.sampled_from(_FILES).flatmap(
        lambda file: st.integers(0, len(file)).map(lambda end: file[:end])
    )
    flipped = st.integers(0, 8 * len(known.token) - 1).map(turned)
    return flipped | st.binary(max_size=120) | st.just(known.token) | files


def _message(draw: Draw, descriptor: Descriptor, known: Known) -> bytes:
    """Mostly a fine message with some fields left out, and some bad ones after them.

    What comes later counts, or is merged, or is one more of a repeated field.
    """
    name = f"i{draw(st.integers(0, 10**6))}"
    parts = []
    if draw(st.integers(0, 4)):
        parts = [_fine_field(one, known, name) for one in reversed(descriptor.fields)]
        if descriptor.name == "Timestamp":
            parts = [fine(descriptor, known, name)]
        if parts and draw(st.booleans()):
            del parts[draw(st.integers(0, len(parts) - 1))]
    if descriptor.fields:
        bad = draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=3))
        parts += [_value(draw, one, known) for one in bad]
    strange = draw(st.integers(0, 9))
    if strange == 0:
        parts.append(field(draw(st.integers(1, 2**29 - 1)), BYTES, draw(st.binary(max_size=20))))
    if strange == 1:
        parts.append(nested(draw(st.sampled_from((1, 99, 101, 5000)))))
    if strange == 2 and parts:
        parts *= draw(st.integers(2, 40))
    return b"".join(parts)


@st.composite
def messages(draw: Draw, descriptor: Descriptor, known: Known) -> bytes:
    """Any bytes, a message of the kind with bad values, or such a one damaged."""
    how = draw(st.integers(0, 9))
    if how == 0:
        return bytes(draw(st.binary(max_size=200)))
    message = _message(draw, descriptor, known)
    if how == 1 and message:
        damaged = bytearray(message)
        for _ in range(draw(st.integers(1, 4))):
            damaged[draw(st.integers(0, len(damaged) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(damaged)
    if how == 2:
        return message[: draw(st.integers(0, len(message)))]
    return message


@dataclass(frozen=True)
class Answer:
    """How a call ended.

    Attributes:
        code: its status.
        said: everything the caller was told, as text.
        messages: the answers.
        seconds: how long it took.
    """

    code: grpc.StatusCode
    said: str
    messages: list[bytes]
    seconds: float


def call(
    channel: grpc.Channel,
    method: MethodDescriptor,
    requests: Sequence[bytes],
    metadata: Sequence[tuple[str, str | bytes]],
    seconds: float,
    most_answers: int = 50,
) -> Answer:
    """Sends raw messages to any kind of method and takes what comes back, up to a number."""
    started = time.monotonic()
    rpc = channel.stream_stream(f"/{method.containing_service.full_name}/{method.name}")
    calling = rpc(iter(requests), metadata=metadata, timeout=seconds)
    answers: list[bytes] = []
    try:
        for answer in calling:
            answers.append(answer)
            if len(answers) == most_answers:
                calling.cancel()
    except grpc.RpcError:
        pass
    told = [(calling.details() or ""), *(f"{k}={v!r}" for k, v in calling.trailing_metadata())]
    return Answer(calling.code(), "\n".join(told), answers, time.monotonic() - started)


def call_by_hand(port: int, path: bytes, metadata: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Calls with an empty message and any bytes as path and metadata, and returns what comes back.

    Written as HTTP/2 frames (RFC 9113): gRPC's clients refuse to send what is not text.
    """
    block = _header_block(path, metadata)
    settings, header_frame, data = (
        _frame(4, 0, 0, b""),
        _frame(1, 4, 1, block),
        _frame(0, 1, 1, bytes(5)),
    )
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + header_frame + data)
        with suppress(TimeoutError):
            while piece := connection.recv(65536):
                answer += piece
                if b"grpc-status" in answer:
                    break
    return answer


def _header_block(path: bytes, metadata: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """The headers of a call as literals (RFC 7541, 6.2.2)."""
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *metadata,
    ]
    return b"".join(b"\0%c%b%c%b" % (len(k), k, len(v), v) for k, v in headers)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def unread(port: int, path: bytes, streams: int) -> socket.socket:
    """Opens streams with empty messages on one connection that takes no answer: its window is 0."""
    window = (4).to_bytes(2, "big") + bytes(4)
    block = _header_block(path)
    calls = b"".join(
        _frame(1, 4, number, block) + _frame(0, 1, number, bytes(5))
        for number in range(1, 2 * streams, 2)
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    connection.sendall(preface + _frame(4, 0, 0, window) + _frame(4, 1, 0, b"") + calls)
    return connection
