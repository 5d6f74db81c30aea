"""Decision tokens: what goes in comes out, and nothing else is accepted."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.serving.tokens import TOKEN_BYTES, Decision, InvalidTokenError, TokenCodec

float32 = st.floats(0, 100, width=32)
decisions = st.builds(
    dict,
    decided_at=st.integers(0, 2**63),
    model_version=st.integers(0, 2**32 - 1),
    propensity=st.floats(0, 1, width=32),
    content_type=st.integers(0, 255),
    mood=st.integers(0, 255),
    time_of_day=st.integers(0, 255),
    action=st.integers(0, 26),
    arm=st.integers(0, 255),
    source=st.integers(0, 255),
    traits=st.tuples(float32, float32, float32, float32, float32),
    activation=st.integers(0, 2**32 - 1),
)
keys = st.binary(min_size=1, max_size=64)
users = st.text(min_size=1, max_size=128)


@given(keys, users, decisions)
def test_round_trip(key: bytes, user: str, fields: dict[str, object]) -> None:
    codec = TokenCodec(key)
    token = codec.issue(user.encode(), **fields)
    assert len(token) == TOKEN_BYTES < 120
    decision = codec.read(token, user)
    assert isinstance(decision, Decision)
    assert {name: getattr(decision, name) for name in fields} == fields
    assert 0 <= decision.decision_id < 2**63


@given(keys, users, decisions)
def test_a_token_tells_nothing(key: bytes, user: str, fields: dict[str, object]) -> None:
    """The same decision twice shares no run of bytes, and the scores are not in it."""
    codec = TokenCodec(key)
    first, second = (codec.issue(user.encode(), **fields)[1:] for _ in range(2))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < TOKEN_BYTES // 4
    assert struct.pack("<5f", *fields["traits"]) not in first


@given(keys, users, decisions, st.integers(0, TOKEN_BYTES * 8 - 1))
def test_any_changed_bit_is_refused(
    key: bytes, user: str, fields: dict[str, object], bit: int
) -> None:
    token = bytearray(TokenCodec(key).issue(user.encode(), **fields))
    token[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTokenError):
        TokenCodec(key).read(bytes(token), user)


@given(keys, keys, users, users, decisions, st.binary(max_size=TOKEN_BYTES * 2))
def test_other_keys_people_and_bytes_are_refused(
    key: bytes, other_key: bytes, user: str, other: str, fields: dict[str, object], junk: bytes
) -> None:
    token = TokenCodec(key).issue(user.encode(), **fields)
    if key != other_key:
        with pytest.raises(InvalidTokenError):
            TokenCodec(other_key).read(token, user)
    if other != user:
        with pytest.raises(InvalidTokenError):
            TokenCodec(key).read(token, other)
    with pytest.raises(InvalidTokenError):
        TokenCodec(key).read(junk, user)


def test_tokens_of_other_keys_are_read_where_they_are_named() -> None:
    fields = (1, 0, 1.0, 1, 1, 1, 0, 1, 1, (1.0, 2.0, 3.0, 4.0, 5.0), 0)
    codec = TokenCodec(b"new", [b"older", b"oldest"])
    for key in (b"new", b"older", b"oldest"):
        token = TokenCodec(key).issue(b"ada", *fields)
        assert codec.read(token, "ada").traits == (1.0, 2.0, 3.0, 4.0, 5.0)
        with pytest.raises(InvalidTokenError):
            codec.read(token, "bob")
    with pytest.raises(InvalidTokenError):
        codec.read(TokenCodec(b"unknown").issue(b"ada", *fields), "ada")
    # It issues with its own key alone.
    TokenCodec(b"new").read(codec.issue(b"ada", *fields), "ada")


def test_unknown_traits_survive() -> None:
    codec = TokenCodec(b"key")
    nan = math.nan
    token = codec.issue(b"u", 1, 0, 1.0, 1, 1, 1, 0, 1, 1, (nan, nan, nan, nan, nan), 7)
    assert all(math.isnan(score) for score in codec.read(token, "u").traits)


def test_values_that_do_not_fit_are_an_error_at_once() -> None:
    with pytest.raises(struct.error):
        TokenCodec(b"key").issue(b"u", 1, 0, 1.0, 300, 1, 1, 0, 1, 1, (1, 2, 3, 4, 5), 0)
