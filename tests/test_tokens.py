"""Decision tokens: what goes in comes out, and nothing else is accepted."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.state import TRAITS
from recparams_server.serving.tokens import (
    RECORD,
    TOKEN_BYTES,
    Decision,
    InvalidTokenError,
    TokenCodec,
    pack_record,
)

float32 = st.floats(0, 100, width=32)
decisions = st.builds(
    Decision,
    decision_id=st.integers(0, 2**63 - 1),
    decided_at=st.integers(0, 2**63),
    model_version=st.integers(0, 2**32 - 1),
    propensity=st.floats(0, 1, width=32),
    content_type=st.integers(0, 255),
    mood=st.integers(0, 255),
    time_of_day=st.integers(0, 255),
    action=st.integers(0, 26),
    arm=st.integers(0, 255),
    source=st.integers(0, 255),
    **dict.fromkeys(TRAITS, float32),
    activation=st.integers(0, 2**32 - 1),
)
DECISION = Decision(
    decision_id=8,
    decided_at=1,
    model_version=0,
    propensity=1.0,
    content_type=1,
    mood=1,
    time_of_day=1,
    action=0,
    arm=1,
    source=1,
    openness=1.0,
    conscientiousness=2.0,
    extraversion=3.0,
    agreeableness=4.0,
    neuroticism=5.0,
    activation=7,
)


def issue(codec: TokenCodec, user: bytes, decision: Decision) -> bytes:
    """Makes a token as deciding does."""
    return codec.seal(user, pack_record(*decision))


keys = st.binary(min_size=1, max_size=64)
users = st.text(min_size=1, max_size=128)


@given(keys, users, decisions)
def test_round_trip(key: bytes, user: str, made: Decision) -> None:
    codec = TokenCodec(key)
    token = issue(codec, user.encode(), made)
    assert len(token) == TOKEN_BYTES < 120
    decision = codec.read(token, user)
    assert isinstance(decision, Decision)
    assert decision == made
    assert decision.traits == tuple(getattr(made, name) for name in TRAITS)


@given(keys, users, decisions)
def test_a_token_tells_nothing(key: bytes, user: str, made: Decision) -> None:
    """The same decision under two ids shares no run of bytes, and the scores are not in it."""
    codec = TokenCodec(key)
    again = made._replace(decision_id=made.decision_id ^ 1)
    first, second = (issue(codec, user.encode(), one)[1:] for one in (made, again))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < TOKEN_BYTES // 4
    assert struct.pack("<5f", *made.traits) not in first


@given(keys, users, decisions, st.integers(0, TOKEN_BYTES * 8 - 1))
def test_any_changed_bit_is_refused(key: bytes, user: str, made: Decision, bit: int) -> None:
    token = bytearray(issue(TokenCodec(key), user.encode(), made))
    token[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidTokenError):
        TokenCodec(key).read(bytes(token), user)


@given(keys, keys, users, users, decisions, st.binary(max_size=TOKEN_BYTES * 2))
def test_other_keys_people_and_bytes_are_refused(
    key: bytes, other_key: bytes, user: str, other: str, made: Decision, junk: bytes
) -> None:
    token = issue(TokenCodec(key), user.encode(), made)
    if key != other_key:
        with pytest.raises(InvalidTokenError):
            TokenCodec(other_key).read(token, user)
    if other != user:
        with pytest.raises(InvalidTokenError):
            TokenCodec(key).read(token, other)
    with pytest.raises(InvalidTokenError):
        TokenCodec(key).read(junk, user)


def test_tokens_of_other_keys_are_read_where_they_are_named() -> None:
    codec = TokenCodec(b"new", [b"older", b"oldest"])
    for key in (b"new", b"older", b"oldest"):
        token = issue(TokenCodec(key), b"ada", DECISION)
        assert codec.read(token, "ada").traits == (1.0, 2.0, 3.0, 4.0, 5.0)
        with pytest.raises(InvalidTokenError):
            codec.read(token, "bob")
    with pytest.raises(InvalidTokenError):
        codec.read(issue(TokenCodec(b"unknown"), b"ada", DECISION), "ada")
    # It issues with its own key alone.
    TokenCodec(b"new").read(issue(codec, b"ada", DECISION), "ada")


def test_unknown_traits_survive() -> None:
    codec = TokenCodec(b"key")
    token = issue(codec, b"u", DECISION._replace(**dict.fromkeys(TRAITS, math.nan)))
    assert all(math.isnan(score) for score in codec.read(token, "u").traits)


def test_values_that_do_not_fit_are_an_error_at_once() -> None:
    with pytest.raises(struct.error):
        issue(TokenCodec(b"key"), b"u", DECISION._replace(content_type=300))


@given(decisions)
def test_one_at_a_time_and_all_at_once_say_the_same(made: Decision) -> None:
    codec = TokenCodec(b"key")
    (token,) = codec.issue_all([b"u"], np.array([made], dtype=RECORD))
    assert codec.read(token, "u") == codec.read(issue(codec, b"u", made), "u") == made


@given(st.lists(st.tuples(decisions, st.sampled_from(["ours", "before", "other", "none"]))))
def test_those_of_the_own_key_are_opened_together(made: list[tuple[Decision, str]]) -> None:
    codec = TokenCodec(b"k" * 32, [b"b" * 32])
    issuers = {"ours": codec, "before": TokenCodec(b"b" * 32), "other": TokenCodec(b"o" * 32)}
    tokens = [
        issue(issuers[by], b"ada", decision) if by in issuers else bytes(i % TOKEN_BYTES)
        for i, (decision, by) in enumerate(made)
    ]
    opened, are_open = codec.open_all(tokens, ["ada"] * len(tokens))
    assert are_open.tolist() == [by == "ours" for _, by in made]
    for record, token in zip(opened[are_open], np.array(tokens, object)[are_open], strict=True):
        assert record.item() == tuple(codec.read(token, "ada"))
