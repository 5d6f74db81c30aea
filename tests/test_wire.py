"""Requests read straight from their bytes say what protobuf says they say."""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.state import TRAITS
from recparams_server.services.checks import LONGEST_USER_ID
from recparams_server.serving.answers import batch_entry_prefix
from recparams_server.serving.plain_requests import read_plain, read_plain_batch
from tests.support import SEED_PERSONALITY, Client, failure_of, request

Request, Batch = pb.GetRecommendationParamsRequest, pb.BatchGetRecommendationParamsRequest
Said = tuple[bytes, bytes, tuple[int, int, int]]
"""User id, scores as five float64 (so that NaN is NaN) and context numbers."""

LONGEST_PLAIN = 125
LONGEST_PLAIN_IN_BATCH = 92
"""Bytes of user ids up to which all lengths take one byte."""

float32 = st.floats(width=32)
users = st.one_of(
    st.text(min_size=1, max_size=12),
    st.text(max_size=140),
    st.text("aé€😀", min_size=85, max_size=130),
    st.text("a\0", max_size=4),
)


def requests(score: st.SearchStrategy[Any], number: st.SearchStrategy[int]) -> st.SearchStrategy:
    """Requests with and without what a plain one has, and has not."""
    return st.builds(
        Request,
        user_id=users,
        personality=st.builds(types.PersonalityProfile, **dict.fromkeys(TRAITS, score)),
        content_type=number,
        mood=number,
        time_of_day=number,
        timestamp=st.just(None) | st.sampled_from([None, {"seconds": 5}]),
        utc_offset_minutes=st.just(0) | st.integers(0, 60),
    )


full = requests(float32, st.integers(1, 9))
any_requests = full | requests(st.none() | float32, st.integers(0, 300))
edits = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 2), st.binary(max_size=2)), min_size=1, max_size=4
)


def is_plain(one: pb.GetRecommendationParamsRequest, longest: int = LONGEST_PLAIN_IN_BATCH) -> bool:
    return (
        1 <= len(one.user_id.encode()) <= longest
        and "\0" not in one.user_id
        and all(one.personality.HasField(name) for name in TRAITS)
        and all(1 <= number < 128 for number in (one.content_type, one.mood, one.time_of_day))
        and not one.HasField("timestamp")
        and not one.utc_offset_minutes
    )


def said_by(one: pb.GetRecommendationParamsRequest) -> Said:
    """What a message says, which must be no more than a plain request can."""
    assert all(one.personality.HasField(name) for name in TRAITS)
    assert 1 <= len(one.user_id) <= LONGEST_USER_ID and "\0" not in one.user_id
    assert not one.HasField("timestamp") and not one.utc_offset_minutes
    assert not len(UnknownFieldSet(one)) and not len(UnknownFieldSet(one.personality))
    scores = [getattr(one.personality, name) for name in TRAITS]
    numbers = one.content_type, one.mood, one.time_of_day
    return one.user_id.encode(), struct.pack("<5d", *scores), numbers


def in_batch(*messages: bytes) -> bytes:
    return b"".join(batch_entry_prefix(len(one)) + one for one in messages)


def read(message: bytes) -> Said | None:
    plain = read_plain(message)
    return plain and (plain[0], struct.pack("<5d", *plain[1]), plain[2])


def read_batch(message: bytes) -> list[Said] | None:
    plain = read_plain_batch(message)
    if plain is None:
        return None
    users, scores, numbers = plain
    assert scores.shape == (len(users), 5) and numbers.shape == (len(users), 3)
    packed = [struct.pack("<5d", *row) for row in scores.tolist()]
    return list(zip(users, packed, map(tuple, numbers.tolist()), strict=True))


def check(message: bytes) -> None:
    """Whatever is read of these bytes is what protobuf reads. Bytes it refuses are not read."""
    if (plain := read(message)) is not None:
        assert plain == said_by(Request.FromString(message))
    check_batch(in_batch(message))


def check_batch(message: bytes) -> None:
    """Checks the same of a batch."""
    if (plain := read_batch(message)) is not None:
        assert plain == [said_by(one) for one in Batch.FromString(message).requests]


def edited(message: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """With some bytes replaced by others, at places counted from the end."""
    for place, removed, added in changes:
        at = max(len(message) - place, 0)
        message = message[:at] + added + message[at + removed :]
    return message


def one_byte_off(message: bytes) -> Iterator[bytes]:
    """Every message with one byte less, more or other."""
    for at in range(len(message)):
        yield message[:at] + message[at + 1 :]
        for byte in range(256):
            yield message[:at] + bytes([byte]) + message[at + 1 :]
            yield message[:at] + bytes([byte]) + message[at:]


@given(any_requests)
def test_requests_are_read_as_protobuf_reads_them(one: pb.GetRecommendationParamsRequest) -> None:
    message = one.SerializeToString()
    check(message)
    if is_plain(one, LONGEST_PLAIN):
        assert read(message) == said_by(one)
    if is_plain(one):
        assert read_batch(in_batch(message)) == [said_by(one)]


@given(st.lists(full, max_size=4) | st.lists(any_requests, max_size=4))
def test_batches_are_read_as_protobuf_reads_them(
    several: list[pb.GetRecommendationParamsRequest],
) -> None:
    message = Batch(requests=several).SerializeToString()
    check_batch(message)
    if all(is_plain(one) for one in several):
        assert read_batch(message) == [said_by(one) for one in several]


@pytest.mark.parametrize("size", [0, 1, 256, 1000])
def test_batches_of_any_size_are_plain(size: int) -> None:
    several = [request(f"user-{i}", mood=1 + i % 8) for i in range(size)]
    message = Batch(requests=several).SerializeToString()
    assert read_batch(message) == [said_by(one) for one in several]


@pytest.mark.parametrize("character", "aé€😀")
def test_the_longest_plain_user_ids(character: str) -> None:
    def of(size: int) -> pb.GetRecommendationParamsRequest:
        return request(character * (size // len(character.encode())))

    assert read(of(LONGEST_PLAIN).SerializeToString()) == said_by(of(LONGEST_PLAIN))
    longest = of(LONGEST_PLAIN_IN_BATCH)
    assert read_batch(Batch(requests=[longest]).SerializeToString()) == [said_by(longest)]
    for size in range(80, 400):
        check(of(size).SerializeToString())
        check_batch(Batch(requests=[of(size)]).SerializeToString())


@pytest.mark.parametrize("user_id", ["a", "ada", "é", "a" * LONGEST_PLAIN_IN_BATCH])
def test_one_byte_off(user_id: str) -> None:
    for message in one_byte_off(request(user_id).SerializeToString()):
        check(message)


def test_one_byte_off_in_a_batch() -> None:
    for message in one_byte_off(Batch(requests=[request(), request("é")]).SerializeToString()):
        check_batch(message)


def test_any_two_context_bytes() -> None:
    """Two bytes of 128 and more can make a number of several bytes and a field out of three."""
    message = bytearray(request().SerializeToString())
    for places in ((-5, -3), (-5, -1), (-3, -1)):
        for pair in range(1 << 16):
            changed = message.copy()
            changed[places[0]], changed[places[1]] = pair.to_bytes(2)
            check(bytes(changed))


@given(full, edits)
def test_damaged_requests(
    one: pb.GetRecommendationParamsRequest, changes: list[tuple[int, int, bytes]]
) -> None:
    check(edited(one.SerializeToString(), changes))


@given(st.lists(full, min_size=1, max_size=3), edits)
def test_damaged_batches(
    several: list[pb.GetRecommendationParamsRequest], changes: list[tuple[int, int, bytes]]
) -> None:
    check_batch(edited(Batch(requests=several).SerializeToString(), changes))


@given(st.binary(max_size=200))
def test_arbitrary_bytes(message: bytes) -> None:
    check(message)
    check_batch(message)


def test_truncated_batches() -> None:
    entry = Batch(requests=[request()]).SerializeToString()
    message = entry * 3
    for length in range(len(message)):
        whole, rest = divmod(length, len(entry))
        expected = None if rest else [said_by(request())] * whole
        assert read_batch(message[:length]) == expected
    assert read_batch(message + b"\0") is None


PLAIN = request().SerializeToString()
USER, REST = PLAIN[:5], PLAIN[5:]
PERSON, CONTEXT = REST[:-6], REST[-6:]
ODD = {
    "the last field first": CONTEXT[4:] + USER + PERSON + CONTEXT[:4],
    "fields backwards": CONTEXT[4:] + CONTEXT[2:4] + CONTEXT[:2] + PERSON + USER,
    "scores backwards": USER
    + PERSON[:2]
    + b"".join(PERSON[at : at + 5] for at in range(22, 1, -5))
    + CONTEXT,
    "two user ids": b"\x0a\x01x" + PLAIN,
    "a profile in two parts": USER + b"\x12\x05" + PERSON[2:7] + b"\x12\x14" + PERSON[7:] + CONTEXT,
    "a profile twice": USER + PERSON + PERSON + CONTEXT,
    "a score twice": USER + b"\x12\x1e" + PERSON[2:7] + PERSON[2:] + CONTEXT,
    "a context number twice": PLAIN + CONTEXT[4:],
    "a length of two bytes": b"\x0a\x83\x00" + PLAIN[2:],
    "a number of two bytes": PLAIN[:-1] + bytes([PLAIN[-1] | 0x80, 0]),
    "a tag of two bytes": b"\x8a\x00" + PLAIN[1:],
    "an unknown field before": b"\x7a\x01x" + PLAIN,
    "an unknown field after": PLAIN + b"\x78\x01",
    "an unknown field in the profile": USER + b"\x12\x1c" + PERSON[2:] + b"\x78\x80\x01" + CONTEXT,
}


@pytest.mark.parametrize("message", ODD.values(), ids=ODD)
def test_other_encodings_are_left_to_protobuf(message: bytes) -> None:
    parsed = Request.FromString(message)
    parsed.DiscardUnknownFields()
    assert said_by(parsed) == said_by(request())
    assert read(message) is None
    assert read_batch(in_batch(message)) is None
    check_batch(b"\x0a" + bytes([len(message) + 1]) + message)


@pytest.mark.parametrize(
    "user", [b"\xff", b"\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"a\xe2\x82"]
)
def test_user_ids_that_are_no_text_are_refused(user: bytes) -> None:
    message = b"\x0a" + bytes([len(user)]) + user + REST
    with pytest.raises(DecodeError):
        Request.FromString(message)
    assert read(message) is None
    assert read_plain_batch(in_batch(message)) is None


@pytest.mark.parametrize("user", [b"", b"\0", b"a\0b"])
def test_user_ids_that_will_be_refused_are_not_plain(user: bytes) -> None:
    message = b"\x0a" + bytes([len(user)]) + user + REST
    assert Request.FromString(message).user_id == user.decode()
    assert read(message) is None
    assert read_plain_batch(in_batch(message)) is None


Call = Callable[..., Any]


def raw(client: Client, method: str) -> Call:
    """A call that takes and gives bytes."""
    return client.channel.unary_unary(f"/recparams.v1.RecommendationService/{method}")


async def test_odd_encodings_are_answered_alike(client: Client) -> None:
    def without_token(answer: Message) -> bytes:
        answer.ClearField("decision_token")
        return answer.SerializeToString()

    one, several = (
        raw(client, "GetRecommendationParams"),
        raw(client, "BatchGetRecommendationParams"),
    )
    plain = without_token(pb.GetRecommendationParamsResponse.FromString(await one(PLAIN)))
    for message in ODD.values():
        answer = pb.GetRecommendationParamsResponse.FromString(await one(message))
        assert without_token(answer) == plain
    for messages in ([PLAIN] * len(ODD), list(ODD.values())):
        answers = await several(in_batch(*messages))
        parsed = pb.BatchGetRecommendationParamsResponse.FromString(answers).responses
        assert [without_token(answer) for answer in parsed] == [plain] * len(messages)


@pytest.mark.parametrize(
    "message", [b"\xff\xff", PLAIN[:-1], PLAIN[:7], b"\x0a\x01\xff" + REST, PLAIN[:-1] + b"\x81"]
)
async def test_what_is_no_request_is_an_invalid_argument(client: Client, message: bytes) -> None:
    for method, sent in (
        ("GetRecommendationParams", message),
        ("BatchGetRecommendationParams", in_batch(PLAIN, message)),
        ("BatchGetRecommendationParams", in_batch(PLAIN)[:-1]),
    ):
        failure = await failure_of(raw(client, method)(sent))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert failure.violations == {"request": f"is not a {method}Request"}
        assert failure.message == f"request: is not a {method}Request"


@pytest.mark.parametrize(
    "score", [struct.pack("<f", score) for score in (100.5, -1, float("inf"))] + [b"\1\0\x80\x7f"]
)
async def test_scores_out_of_range_are_named(client: Client, score: bytes) -> None:
    """The last one is a signalling NaN."""
    sent = PLAIN.replace(struct.pack("<f", SEED_PERSONALITY.agreeableness), score)
    failure = await failure_of(raw(client, "GetRecommendationParams")(sent))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {"personality.agreeableness"}
    batch = raw(client, "BatchGetRecommendationParams")
    failure = await failure_of(batch(in_batch(PLAIN, sent)))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {"requests[1].personality.agreeableness"}


async def test_no_bytes_at_all(client: Client) -> None:
    failure = await failure_of(raw(client, "GetRecommendationParams")(b""))
    assert set(failure.violations) == {"user_id", "content_type", "time_of_day"}
    failure = await failure_of(raw(client, "BatchGetRecommendationParams")(b""))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {"requests"}
