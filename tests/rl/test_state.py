"""States: discretisation at its edges, and the encoding both ways."""

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.state import (
    CONTENT_TYPES,
    MOODS,
    OUT_OF_VOCABULARY,
    TIMES_OF_DAY,
    UNKNOWN_PERSONALITY,
    Context,
    StateSpace,
    time_of_day,
)

names = st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True).map(tuple)
spaces = st.builds(
    StateSpace,
    bins=st.integers(1, 10),
    content_types=names,
    moods=names,
    times_of_day=names,
)
scores = st.floats(0.0, 100.0)
scores32 = st.floats(0.0, 100.0, width=32)


def near_an_edge(bins: int) -> st.SearchStrategy[np.float32]:
    """The float32 values next to, and on, the edges of bins."""
    return st.tuples(st.integers(0, bins), st.integers(-2, 2)).map(
        lambda edge: np.clip(
            np.float32(edge[0] * 100.0 / bins) + np.float32(edge[1] * 4e-6), np.float32(0), 100
        )
    )


def test_the_seeds_space() -> None:
    space = StateSpace()
    assert (space.bins, space.n_cells, space.n_contexts, space.n_states) == (5, 3125, 96, 300_000)
    assert space.content_types == ("music", "video", "game")
    assert space.times_of_day == ("morning", "afternoon", "evening", "night")
    assert {"neutral", "happy", "sad", "anxious", "calm", "relaxed", "energetic"} < set(space.moods)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, 0),
        (-0.0, 0),
        (5e-324, 0),
        (19.999999999999996, 0),
        (20.0, 1),
        (39.99999999999999, 1),
        (40.0, 2),
        (59.99999999999999, 2),
        (60.0, 3),
        (79.99999999999999, 3),
        (80.0, 4),
        (99.99999999999999, 4),
        (100.0, 4),
        (100, 4),
    ],
)
def test_edges_of_the_bins(score: float, expected: int) -> None:
    assert StateSpace().discretize(score) == expected


def test_three_bins_are_the_seeds() -> None:
    space = StateSpace(bins=3)
    assert [space.discretize(x) for x in (0, 33, 33.4, 66.6, 66.7, 100)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "score",
    [math.nan, math.inf, -math.inf, -5e-324, math.nextafter(100, 200), -1.0, 101.0, 1e308],
)
def test_other_scores_are_refused(score: float) -> None:
    space = StateSpace()
    with pytest.raises(ValueError, match="from 0 to 100"):
        space.discretize(score)
    for trait in range(5):
        traits = [50.0] * 5
        traits[trait] = score
        with pytest.raises(ValueError, match="from 0 to 100"):
            space.index(traits, Context("music", "calm", "evening"))


@given(st.integers(1, 10), scores, scores)
def test_bins_are_in_range_monotone_and_of_equal_width(bins: int, one: float, two: float) -> None:
    space = StateSpace(bins=bins)
    low, high = sorted((one, two))
    assert 0 <= space.discretize(low) <= space.discretize(high) < bins
    exact = Fraction(low) * bins / 100
    position = space.discretize(low)
    assert position - Fraction(1, 10**9) <= exact <= position + 1 + Fraction(1, 10**9)


@given(st.data(), st.integers(1, 10))
def test_float32_scores_fall_where_columns_put_them(data: st.DataObject, bins: int) -> None:
    """The database holds float32: a score must land in one bin however it arrives."""
    space = StateSpace(bins, ("a",), ("b",), ("c",))
    score = np.float32(data.draw(st.one_of(scores32, near_an_edge(bins))))
    zero = np.zeros(1, dtype=np.int64)
    traits = np.array([[0, 0, 0, 0, score]], dtype=np.float32)
    column = space.index_columns(traits, zero, zero, zero)[0]
    assert space.discretize(float(score)) == space.discretize(score) == column  # type: ignore[arg-type]


@given(st.data(), spaces)
def test_index_and_decode_are_inverse(data: st.DataObject, space: StateSpace) -> None:
    state = data.draw(st.integers(0, space.n_states - 1))
    bins, context = space.decode(state)
    midpoints = [(b + 0.5) * 100.0 / space.bins for b in bins]
    assert space.index(midpoints, context) == state

    traits = data.draw(st.lists(scores, min_size=5, max_size=5))
    context = Context(
        data.draw(st.sampled_from(space.content_types)),
        data.draw(st.sampled_from(space.moods)),
        data.draw(st.sampled_from(space.times_of_day)),
    )
    state = space.index(traits, context)
    assert 0 <= state < space.n_states
    assert space.decode(state) == (tuple(space.discretize(x) for x in traits), context)
    assert state == space.cell(traits) * space.n_contexts + space.context(context)


def test_every_state_has_one_meaning() -> None:
    space = StateSpace(2, ("music", "game"), ("calm",), ("morning", "night", "noon"))
    meanings = [space.decode(state) for state in range(space.n_states)]
    assert len(set(meanings)) == space.n_states == 32 * 6
    for state in (-1, space.n_states):
        with pytest.raises(IndexError):
            space.decode(state)


def test_the_cell_is_the_slow_axis_and_openness_its_slowest() -> None:
    space = StateSpace()
    first = Context("music", "neutral", "morning")
    assert space.index([0, 0, 0, 0, 0], first) == 0
    assert space.index([0, 0, 0, 0, 20], first) == 96
    assert space.index([20, 0, 0, 0, 0], first) == 96 * 625
    assert space.index([0, 0, 0, 0, 0], Context("music", "neutral", "afternoon")) == 1
    assert space.index([0, 0, 0, 0, 0], Context("music", "happy", "morning")) == 4
    assert space.index([0, 0, 0, 0, 0], Context("video", "neutral", "morning")) == 32


@given(st.data(), spaces)
def test_columns_agree_with_scalars_on_every_input(data: st.DataObject, space: StateSpace) -> None:
    anything = st.one_of(scores, scores, st.floats(), st.sampled_from([-0.0, 0.0, 20.0, 100.0]))
    shape = space.context_shape
    positions = st.tuples(*(st.one_of(st.integers(0, n - 1), st.just(-1)) for n in shape))
    rows = data.draw(
        st.lists(st.tuples(st.lists(anything, min_size=5, max_size=5), positions), max_size=8)
    )
    kind = data.draw(st.sampled_from([np.int8, np.int16, np.int32, np.int64]))
    encoded = space.index_columns(
        np.array([traits for traits, _ in rows], dtype=np.float64),
        *(np.array([where[axis] for _, where in rows], dtype=kind) for axis in range(3)),
    )
    assert encoded.dtype == np.int32
    assert encoded.tolist() == [scalar_encoding(space, *row) for row in rows]


def scalar_encoding(space: StateSpace, traits: list[float], where: tuple[int, int, int]) -> int:
    if min(where) < 0:
        return OUT_OF_VOCABULARY
    content, mood, time = where
    context = Context(space.content_types[content], space.moods[mood], space.times_of_day[time])
    try:
        return space.index(traits, context)
    except ValueError:
        return UNKNOWN_PERSONALITY


def test_a_context_outside_the_vocabulary_is_a_key_error() -> None:
    space = StateSpace()
    for context in (
        Context("book", "calm", "evening"),
        Context("music", "bored", "evening"),
        Context("music", "calm", "noon"),
        Context("calm", "music", "evening"),
    ):
        with pytest.raises(KeyError):
            space.context(context)
        with pytest.raises(KeyError):
            space.index([50.0] * 5, context)


@pytest.mark.parametrize("count", [0, 4, 6])
def test_five_scores_are_needed(count: int) -> None:
    with pytest.raises(ValueError, match="unpack"):
        StateSpace().cell([50.0] * count)


@given(spaces)
def test_a_space_survives_json(space: StateSpace) -> None:
    assert StateSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": 0},
        {"bins": 11},
        {"bins": 5.0},
        {"bins": "5"},
        {"bins": True},
        {"bins": math.inf},
        {"bins": None},
        {"moods": []},
        {"moods": ["calm", "calm"]},
        {"moods": "calm"},
        {"moods": ["calm", 1]},
        {"moods": [["calm"]]},
        {"moods": None},
        {"content_types": {"music": 1}},
        {"times_of_day": [str(n) for n in range(10**6)]},
    ],
)
def test_a_malformed_space_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="int32" if "times_of_day" in wrong else next(iter(wrong))):
        StateSpace.from_dict({**StateSpace().to_dict(), **wrong})


@pytest.mark.parametrize("name", ["bins", "content_types", "moods", "times_of_day"])
def test_a_space_needs_all_of_its_parts(name: str) -> None:
    data = StateSpace().to_dict()
    del data[name]
    with pytest.raises(KeyError):
        StateSpace.from_dict(data)


def test_a_space_whose_states_an_int32_cannot_number_is_refused() -> None:
    many = tuple(str(n) for n in range(300))
    with pytest.raises(ValueError, match="int32"):
        StateSpace(10, many, many, ("now",))


def test_time_of_day_at_every_hour() -> None:
    of_hour = ["night"] * 5 + ["morning"] * 7 + ["afternoon"] * 5 + ["evening"] * 5 + ["night"] * 2
    assert [time_of_day(hour) for hour in range(24)] == of_hour
    assert set(of_hour) == set(TIMES_OF_DAY)


def test_vocabularies_have_no_name_twice() -> None:
    for words in (CONTENT_TYPES, MOODS, TIMES_OF_DAY):
        assert len(set(words)) == len(words)
