"""The rule-based policy: the seed's examples, and the table equal to the function."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.action import DIVERSITIES, ENERGIES, NOVELTIES, Action
from recparams_rl.rules import RULES, rule_based_action, rule_table
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, TRAITS, Context, StateSpace

SEEDS_PERSON = (75, 60, 40, 80, 30)
SEEDS_ADVENTURER = (85, 50, 60, 70, 20)
NEUTRAL = (50.0,) * 5
LEVELS = {"energy": ENERGIES, "diversity": DIVERSITIES, "novelty": NOVELTIES}

contexts = st.builds(
    Context, st.sampled_from(CONTENT_TYPES), st.sampled_from(MOODS), st.sampled_from(TIMES_OF_DAY)
)
people = st.lists(st.floats(0, 100), min_size=5, max_size=5)


@pytest.mark.parametrize(
    ("traits", "context", "expected"),
    [
        (SEEDS_PERSON, ("music", "calm", "evening"), ("low", "diverse", "exploratory")),
        (SEEDS_ADVENTURER, ("music", "relaxed", "evening"), ("low", "diverse", "exploratory")),
        (SEEDS_ADVENTURER, ("music", "energetic", "morning"), ("high", "diverse", "exploratory")),
    ],
)
def test_the_seeds_examples(
    traits: tuple[float, ...], context: tuple[str, str, str], expected: tuple[str, str, str]
) -> None:
    assert rule_based_action(traits, Context(*context)) == Action(*expected)


@pytest.mark.parametrize(
    "space",
    [
        StateSpace(),
        *(StateSpace(bins=bins) for bins in (1, 2, 3)),
        StateSpace(6, ("game", "podcast"), ("bored", "energetic"), ("night",)),
        StateSpace(7, ("video",), ("sad",), ("morning", "noon")),
    ],
    ids=lambda space: f"{space.bins} bins",
)
def test_the_table_is_the_rules_at_midpoints(space: StateSpace) -> None:
    midpoints = [(position + 0.5) * 100.0 / space.bins for position in range(space.bins)]
    every_context = [
        Context(*names) for names in product(space.content_types, space.moods, space.times_of_day)
    ]
    table = rule_table(space)
    assert table.dtype == np.uint8 and table.shape == (space.n_states,)
    index = {action: action.index for action in map(Action.from_index, range(27))}
    # With 5 bins, agreeableness at one bin only: no rule has it (see below).
    of_trait = [midpoints if name != "agreeableness" else midpoints[:1] for name in TRAITS]
    expected = [
        index[rule_based_action(traits, context)]
        for traits in product(*of_trait)
        for context in every_context
    ]
    cells = table.reshape(*(space.bins,) * 5, space.n_contexts)
    assert np.array_equal(cells, np.broadcast_to(cells[:, :, :, :1], cells.shape))
    assert cells[:, :, :, 0].ravel().tolist() == expected


def test_no_rule_has_agreeableness() -> None:
    assert all("agreeableness" not in rule.traits for rule in RULES.values())


@pytest.mark.parametrize(
    ("openness", "expected"),
    [
        (0.0, "focused"),
        (39.99999, "focused"),
        (40.0, "balanced"),
        (59.99999, "balanced"),
        (60.0, "diverse"),
        (100.0, "diverse"),
    ],
)
def test_a_trait_is_low_below_40_and_high_from_60(openness: float, expected: str) -> None:
    action = rule_based_action((openness, *NEUTRAL[1:]), Context("music", "neutral", "afternoon"))
    assert action.diversity == expected


@given(people, contexts, st.sampled_from(range(5)), st.floats(0, 100))
def test_each_trait_moves_a_level_one_way_only(
    traits: list[float], context: Context, trait: int, other: float
) -> None:
    low, high = ([*traits[:trait], x, *traits[trait + 1 :]] for x in sorted((traits[trait], other)))
    for dimension, rule in RULES.items():
        levels = LEVELS[dimension]
        change = levels.index(getattr(rule_based_action(high, context), dimension)) - levels.index(
            getattr(rule_based_action(low, context), dimension)
        )
        assert change * rule.traits.get(TRAITS[trait], 0) >= 0
        assert change == 0 or TRAITS[trait] in rule.traits


@given(people)
def test_names_the_rules_do_not_know_count_nothing(traits: list[float]) -> None:
    strange = rule_based_action(traits, Context("podcast", "bored", "noon"))
    assert strange == rule_based_action(traits, Context("music", "neutral", "afternoon"))


def test_every_level_is_reached() -> None:
    reached = [Action.from_index(int(index)) for index in np.unique(rule_table(StateSpace()))]
    for dimension, levels in LEVELS.items():
        assert {getattr(action, dimension) for action in reached} == set(levels)


def test_five_scores_are_needed() -> None:
    for count in (4, 6):
        with pytest.raises(ValueError, match=r"argument 2|zip"):
            rule_based_action([50.0] * count, Context("music", "calm", "night"))
