"""Rewards: the seed's values, and how they add up."""

import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.reward import REACTIONS, RewardWeights, reaction_flags, reaction_mask, rewards

SEED = {"like": 1.0, "dislike": -1.0, "complete": 0.5, "skip": -0.3, "share": 0.8}
NAN = math.nan

reaction_lists = st.lists(st.sampled_from(REACTIONS), max_size=8)
weight = st.floats(-10, 10, width=32)
weight_sets = st.builds(RewardWeights, **{f.name: weight for f in fields(RewardWeights)})
rates = st.one_of(st.floats(0, 1), st.just(NAN))
changes = st.one_of(st.floats(-1, 1), st.just(NAN))


def reward_of(
    names: list[str],
    completion_rate: float = NAN,
    mood_change: float = NAN,
    weights: RewardWeights | None = None,
) -> float:
    mask = np.array([reaction_mask(names)])
    values = rewards(weights or RewardWeights(), mask, [completion_rate], [mood_change])
    assert values.shape == (1,) and values.dtype == np.float32
    return float(values[0])


@pytest.mark.parametrize(("reaction", "value"), [*SEED.items(), ("impression", 0.0)])
def test_the_seeds_reactions(reaction: str, value: float) -> None:
    assert reward_of([reaction]) == np.float32(value)


@pytest.mark.parametrize(("rate", "value"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5), (NAN, 0.0)])
def test_the_seeds_completion_rate(rate: float, value: float) -> None:
    assert reward_of([], completion_rate=rate) == value


@pytest.mark.parametrize(
    ("change", "value"), [(-1.0, -0.5), (-0.5, -0.25), (0.0, 0.0), (1.0, 0.5), (NAN, 0.0)]
)
def test_the_seeds_mood_improvement(change: float, value: float) -> None:
    assert reward_of([], mood_change=change) == value


def test_the_seeds_second_session_is_worth_1_3() -> None:
    assert reward_of(["complete", "share"]) == pytest.approx(1.3, abs=1e-6)


def test_the_extremes() -> None:
    assert reward_of(["like", "complete", "share"], 1.0, 1.0) == pytest.approx(3.3, abs=1e-6)
    assert reward_of(["dislike", "skip"], 0.0, -1.0) == pytest.approx(-1.8, abs=1e-6)
    assert reward_of([]) == 0.0


@given(weight_sets, reaction_lists, rates, changes)
def test_a_reward_is_the_weighted_sum(
    weights: RewardWeights, names: list[str], rate: float, change: float
) -> None:
    expected = sum(getattr(weights, name) for name in set(names))
    expected += 0.0 if math.isnan(rate) else weights.completion_rate * rate
    expected += 0.0 if math.isnan(change) else weights.mood_change * change
    assert reward_of(names, rate, change, weights) == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.tuples(reaction_lists, rates, changes), max_size=10), st.data())
def test_rows_are_independent(
    rows: list[tuple[list[str], float, float]], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([np.uint8, np.int16, np.int64]))
    together = rewards(
        RewardWeights(),
        np.array([reaction_mask(names) for names, _, _ in rows], dtype=kind),
        np.array([rate for _, rate, _ in rows]),
        np.array([change for _, _, change in rows]),
    )
    assert together.tolist() == [reward_of(*row) for row in rows]


@given(weight_sets, reaction_lists, rates, changes)
def test_doubling_the_weights_doubles_the_reward(
    weights: RewardWeights, names: list[str], rate: float, change: float
) -> None:
    twice = RewardWeights(**{f.name: 2 * getattr(weights, f.name) for f in fields(weights)})
    once = reward_of(names, rate, change, weights)
    assert reward_of(names, rate, change, twice) == pytest.approx(2 * once, abs=1e-30)


@given(reaction_lists, st.randoms())
def test_order_and_repetition_do_not_matter(names: list[str], random: object) -> None:
    shuffled = [*names, *names]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert reaction_mask(shuffled) == reaction_mask(names)


def test_masks_have_one_bit_a_reaction() -> None:
    assert [reaction_mask([name]) for name in REACTIONS] == [1, 2, 4, 8, 16, 32]
    assert reaction_mask(REACTIONS) == 63
    assert reaction_mask([]) == 0
    with pytest.raises(ValueError, match="not in"):
        reaction_mask(["like", "loved"])


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_flags_read_every_mask(kind: type) -> None:
    every = np.arange(64, dtype=kind)
    for bit, name in enumerate(REACTIONS):
        flags = reaction_flags(every, name)
        assert flags.dtype == np.bool_
        assert flags.tolist() == [bool(mask & 1 << bit) for mask in range(64)]


def test_no_rows() -> None:
    none = np.empty(0)
    assert rewards(RewardWeights(), none.astype(np.int64), none, none).shape == (0,)


@pytest.mark.parametrize("name", [f.name for f in fields(RewardWeights)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_must_be_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"the weight of {name} must be"):
        RewardWeights(**{name: value})
