"""Arms: sticky, monotone, and of the size that was asked for."""

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.arms import ARMS, HOLDBACK_SALT, PREVIOUS, RL, RULE_BASED, Split, position_of

percents = st.floats(0, 100)
users = st.text(min_size=1, max_size=40)
salts = st.text(alphabet="0123456789abcdef", max_size=16)


@given(salts, users)
def test_positions_are_those_of_the_documented_hash(salt: str, user: str) -> None:
    digest = sha256(salt.encode() + b":" + user.encode()).digest()
    assert position_of(salt, user) == (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    assert 0 <= position_of(salt, user) < 1


@given(salts, users, percents, percents)
def test_whoever_is_in_stays_in_when_the_ramp_grows(
    salt: str, user: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if Split(low, 0, salt).arm(user) == RL:
        assert Split(high, 0, salt).arm(user) == RL


@given(salts, users, percents, percents, percents)
def test_a_growing_ramp_takes_nobody_from_the_rules(
    salt: str, user: str, rules: float, one: float, other: float
) -> None:
    low, high = sorted((one * (1 - rules / 100), other * (1 - rules / 100)))
    high = min(high, 100 - rules)
    before = Split(min(low, high), rules, salt).arm(user)
    after = Split(high, rules, salt).arm(user)
    assert (before == RULE_BASED) == (after == RULE_BASED)


@given(percents, percents)
def test_shares_sum_to_one(percent: float, rules: float) -> None:
    if percent + rules > 100:
        with pytest.raises(ValueError, match="100"):
            Split(percent, rules)
        return
    shares = Split(percent, rules).shares()
    assert tuple(shares) == ARMS
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0


@pytest.mark.parametrize(("percent", "rules"), [(95, 5), (99, 1), (97.5, 2.5), (66.6, 33.4)])
def test_no_arm_is_left_over_by_rounding(percent: float, rules: float) -> None:
    assert Split(percent, rules).shares()[PREVIOUS] == 0


@given(salts, users)
def test_the_ends_of_the_range(salt: str, user: str) -> None:
    assert Split(100, 0, salt).arm(user) == RL
    assert Split(0, 0, salt).arm(user) == PREVIOUS
    assert Split(0, 100, salt).arm(user) == RULE_BASED


@pytest.mark.parametrize(
    "bad",
    [
        *((-1, 0), (0, -1), (101, 0), (60, 50), (float("nan"), 0)),
        *((9, 0, "", 101), (9, 0, "", -1), (9, 0, "", float("nan"))),
    ],
)
def test_impossible_shares(bad: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="shares"):
        Split(*bad)


def test_arms_have_the_size_that_was_asked_for_and_salts_are_independent() -> None:
    people = [f"user-{n}" for n in range(20_000)]
    one, other = (Split(10, 20, salt) for salt in ("a", "b"))
    arms = [one.arm(user) for user in people]
    assert arms.count(RL) / len(people) == pytest.approx(0.1, abs=0.01)
    assert arms.count(RULE_BASED) / len(people) == pytest.approx(0.2, abs=0.012)
    both = sum(one.arm(user) == other.arm(user) == RL for user in people)
    assert both / len(people) == pytest.approx(0.01, abs=0.004)


holdbacks = st.floats(0, 100)


@given(salts, salts, users, holdbacks, percents, percents)
def test_who_is_held_back_is_so_in_every_rollout(
    one: str, other: str, user: str, holdback: float, percent: float, next_percent: float
) -> None:
    held_back = 100 * position_of(HOLDBACK_SALT, user) < holdback
    for split in (
        Split(percent, 0, one, holdback),
        Split(next_percent, 0, other, holdback),
        Split(100, 0, other, holdback),
    ):
        assert (split.arm(user) == RULE_BASED) == held_back
        # The others are where they would be without a holdback.
        if not held_back:
            assert split.arm(user) == Split(split.percent, 0, split.salt).arm(user)


@given(users, holdbacks, holdbacks)
def test_a_larger_holdback_lets_nobody_out(user: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    if Split(100, 0, "a", low).arm(user) == RULE_BASED:
        assert Split(100, 0, "b", high).arm(user) == RULE_BASED


@given(percents, holdbacks)
def test_shares_with_a_holdback(percent: float, holdback: float) -> None:
    shares = Split(percent, 0, "", holdback).shares()
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) >= 0
    assert shares[RULE_BASED] == pytest.approx(holdback / 100)
    assert Split(100, 0, "", holdback).shares()[PREVIOUS] == 0


def test_arms_have_their_shares_beside_a_holdback() -> None:
    people = [f"user-{n}" for n in range(20_000)]
    split = Split(30, 20, "a", 5)
    arms = [split.arm(user) for user in people]
    for name, share in split.shares().items():
        assert arms.count(name) / len(people) == pytest.approx(share, abs=0.012)
