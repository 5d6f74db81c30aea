"""Actions: index, parameters, and inference from logged parameters."""

import math
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.action import (
    ACTIONS,
    DIVERSITIES,
    ENERGIES,
    N_ACTIONS,
    NOVELTIES,
    Action,
    RecommendationParams,
    infer_action,
)

DIMENSIONS = {
    "energy": {"min_energy": 1, "max_energy": 1, "valence": 1},
    "diversity": {"genre_count": 4},
    "novelty": {"exploration_rate": 1, "popularity_min": 100, "popularity_max": 100},
}
"""The fields of each dimension, and the width of their ranges."""

# Less than half the distance between a field's neighbouring levels.
NOISE = {
    "min_energy": 0.14,
    "max_energy": 0.14,
    "valence": 0.09,
    "genre_count": 0,
    "exploration_rate": 0.09,
    "popularity_min": 12,
    "popularity_max": 12,
}

actions = st.sampled_from(ACTIONS)


def some_fields(names: dict[str, int]) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(sorted(names)), min_size=1)


some_of_each_dimension = st.tuples(*(some_fields(names) for names in DIMENSIONS.values())).map(
    lambda parts: frozenset().union(*parts)
)


def test_the_seeds_worked_example() -> None:
    params = Action(energy="low", diversity="diverse", novelty="exploratory").to_params()
    assert asdict(params) == {
        "min_energy": 0.0,
        "max_energy": 0.4,
        "valence": 0.3,
        "genre_count": 5,
        "exploration_rate": 0.5,
        "popularity_min": 0,
        "popularity_max": 50,
    }
    assert type(params.genre_count) is type(params.popularity_max) is int


def test_27_actions_in_the_order_of_their_index() -> None:
    assert N_ACTIONS == 27
    assert tuple(Action(*levels) for levels in product(ENERGIES, DIVERSITIES, NOVELTIES)) == ACTIONS
    assert [action.index for action in ACTIONS] == list(range(27))
    assert [Action.from_index(index) for index in range(27)] == list(ACTIONS)
    for index in (-1, 27):
        with pytest.raises(IndexError):
            Action.from_index(index)


@pytest.mark.parametrize(
    "levels",
    [("loud", "diverse", "mixed"), ("low", "low", "mixed"), ("low", "diverse", ""), ("", "", "")],
)
def test_unknown_levels_are_refused(levels: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Action(*levels)


def test_parameters_are_in_range_and_rise_with_the_level() -> None:
    for action in ACTIONS:
        params = action.to_params()
        assert 0.0 <= params.min_energy < params.max_energy <= 1.0  # type: ignore[operator]
        assert 0 <= params.popularity_min < params.popularity_max <= 100  # type: ignore[operator]
        assert 0.0 <= params.valence <= 1.0 and 0.0 <= params.exploration_rate <= 1.0  # type: ignore[operator]
    for dimension, levels in (
        ("energy", ENERGIES),
        ("diversity", DIVERSITIES),
        ("novelty", NOVELTIES),
    ):
        falls = ("popularity_min", "popularity_max")
        for name in DIMENSIONS[dimension]:
            values = [
                getattr(replace(ACTIONS[0], **{dimension: level}).to_params(), name)
                for level in levels
            ]
            assert values == sorted(set(values), reverse=name in falls)


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_inference_inverts_every_action(action: Action) -> None:
    assert infer_action(action.to_params()) == action


@given(actions, some_of_each_dimension, st.data())
def test_partial_and_noisy_parameters_give_the_action(
    action: Action, kept: frozenset[str], data: st.DataObject
) -> None:
    given = {
        name: value + data.draw(st.floats(-NOISE[name], NOISE[name]))
        for name, value in asdict(action.to_params()).items()
        if name in kept
    }
    assert infer_action(RecommendationParams(**given)) == action


@given(actions, some_of_each_dimension, st.data())
def test_the_inferred_level_is_the_nearest(
    action: Action, kept: frozenset[str], data: st.DataObject
) -> None:
    values = {name: data.draw(st.floats(-1e3, 1e3)) for name in sorted(kept)}
    inferred = infer_action(RecommendationParams(**values))  # type: ignore[arg-type]
    for dimension, ranges in DIMENSIONS.items():
        distance = {}
        for candidate in ACTIONS:
            of_candidate = asdict(candidate.to_params())
            distance[getattr(candidate, dimension)] = sum(
                ((Fraction(values[name]) - Fraction(of_candidate[name])) / width) ** 2
                for name, width in ranges.items()
                if name in values
            )
        chosen = distance[getattr(inferred, dimension)]
        assert chosen <= min(distance.values()) + Fraction(1, 10**6)


def test_ties_go_to_the_lower_level() -> None:
    params = Action("low", "focused", "familiar").to_params()
    assert infer_action(replace(params, genre_count=2)).diversity == "focused"
    assert infer_action(replace(params, genre_count=4)).diversity == "balanced"


@given(
    st.fixed_dictionaries(
        {
            name: st.floats(allow_nan=False, allow_infinity=False)
            for names in DIMENSIONS.values()
            for name in names
        }
    )
)
def test_any_finite_parameters_give_some_action(values: dict[str, float]) -> None:
    assert infer_action(RecommendationParams(**values)) in ACTIONS  # type: ignore[arg-type]


def test_values_far_out_of_range_give_the_outermost_level() -> None:
    high = infer_action(RecommendationParams(min_energy=1e200, genre_count=10**9, popularity_max=0))
    assert high == Action("high", "diverse", "exploratory")
    low = infer_action(RecommendationParams(valence=-1e308, genre_count=-5, popularity_min=10**9))
    assert low == Action("low", "focused", "familiar")


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_dimension_without_parameters_is_refused(dimension: str) -> None:
    without = {
        name: value
        for name, value in asdict(ACTIONS[0].to_params()).items()
        if name not in DIMENSIONS[dimension]
    }
    with pytest.raises(ValueError, match=f"{dimension} cannot be inferred"):
        infer_action(RecommendationParams(**without))


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        infer_action(replace(ACTIONS[0].to_params(), **{name: value}))
