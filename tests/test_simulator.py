"""The simulated population: realistic people, known preferences, exact expectations."""

from dataclasses import fields, replace

import numpy as np
import pytest

from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.reward import REACTIONS, RewardWeights, reaction_flags, rewards
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, StateSpace
from recparams_rl.transitions import Interactions, prepare
from recparams_simulation.people.population import (
    SECONDS_BETWEEN_VISITS,
    WEEK,
    Population,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.preferences import OWN
from recparams_simulation.people.simulator import (
    PAUSE_SECONDS,
    expected_rewards,
    like_probabilities,
    next_situations,
    react,
)
from recparams_simulation.people.traits import TRAIT_CORRELATIONS, TRAIT_MEANS, TRAIT_SDS

START = 1_700_000_000
WEIGHTS = RewardWeights()
SPACE = StateSpace()


def visits_of(population: Population, seed: int = 1) -> Situations:
    return draw_visits(np.random.default_rng(seed), population, np.arange(len(population)), START)


def states(population: Population, at: Situations) -> np.ndarray:
    return SPACE.index_columns(
        population.traits[at.person], at.content_type, at.mood, at.time_of_day
    )


@pytest.fixture(scope="module")
def population() -> Population:
    return draw_population(np.random.default_rng(0), 2800)


@pytest.fixture(scope="module")
def visits(population: Population) -> Situations:
    return visits_of(population)


def columns(record: object) -> list[np.ndarray]:
    return [getattr(record, field.name) for field in fields(record)]  # type: ignore[arg-type]


def test_traits_are_distributed_as_in_the_sample():
    traits = draw_population(np.random.default_rng(0), 50_000).traits
    assert traits.min() >= 0.0
    assert traits.max() <= 100.0
    np.testing.assert_allclose(traits.mean(axis=0), TRAIT_MEANS, atol=1.0)
    np.testing.assert_allclose(traits.std(axis=0), TRAIT_SDS, atol=2.0)
    np.testing.assert_allclose(np.corrcoef(traits.T), TRAIT_CORRELATIONS, atol=0.05)


def test_people_fill_about_as_many_cells_as_in_the_sample(population):
    cells, counts = np.unique(
        [SPACE.cell(tuple(scores)) for scores in population.traits], return_counts=True
    )
    assert 500 < len(cells) < 1000
    assert 0.008 < counts.max() / len(population) < 0.03


def test_the_same_seed_gives_the_same_world(population, visits):
    again = draw_population(np.random.default_rng(0), 2800)
    for one, other in zip(columns(population), columns(again), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(columns(visits), columns(visits_of(again)), strict=True):
        np.testing.assert_array_equal(one, other)
    action = np.zeros(len(visits), dtype=np.uint8)
    outcomes = [react(np.random.default_rng(3), population, visits, action) for _ in range(2)]
    for one, other in zip(*map(columns, outcomes), strict=True):
        np.testing.assert_array_equal(one, other)


def test_visits_lie_in_their_week_and_apart(population, visits):
    assert np.all((visits.time >= START) & (visits.time < START + WEEK))
    assert np.all(np.diff(visits.time) >= 0)
    for column, vocabulary in (
        (visits.content_type, CONTENT_TYPES),
        (visits.mood, MOODS),
        (visits.time_of_day, TIMES_OF_DAY),
    ):
        assert set(np.unique(column)) == set(range(len(vocabulary)))
    order = np.lexsort((visits.time, visits.person))
    same = np.diff(visits.person[order]) == 0
    assert np.diff(visits.time[order])[same].min() >= SECONDS_BETWEEN_VISITS
    assert 3 * len(population) < len(visits) < 7 * len(population)


def test_only_those_who_still_come_visit(population):
    people = np.array([5, 17, 400])
    some = draw_visits(np.random.default_rng(2), population, people, START)
    assert set(some.person) <= set(people)
    nobody = draw_visits(np.random.default_rng(2), population, people[:0], START)
    assert len(nobody) == 0


def test_people_visit_at_their_time_of_day(population, visits):
    hour = visits.time % 86400 / 3600
    away = np.abs((hour - population.peak_hour[visits.person] + 12) % 24 - 12)
    assert 2.0 < away.mean() < 3.0  # 3 x sqrt(2 / pi) = 2.4


def test_utilities_and_ideals_are_within_range(population, visits):
    suits = population.utilities(visits)
    assert suits.shape == (len(visits), 27)
    assert suits.min() > 0.0
    assert suits.max() <= 1.0
    who, tastes = visits.person, population.tastes[visits.person, visits.content_type]
    points = OWN.ideals(population.traits[who], visits.context, tastes)
    assert points.min() > 0.0
    assert points.max() < 1.0
    assert np.all(points.std(axis=0) > 0.2)


def test_utility_is_continuous_in_the_traits(population, visits):
    before = population.utilities(visits)
    nudged = replace(population, traits=population.traits + 0.01)
    assert np.abs(nudged.utilities(visits) - before).max() < 0.01


def test_expectations_equal_monte_carlo(population, visits):
    some = visits[:40]
    repeats = 4000
    many = Situations(*(np.repeat(column, repeats) for column in columns(some)))
    rng = np.random.default_rng(4)
    action = np.repeat(rng.integers(0, 27, size=len(some)), repeats)
    outcomes = react(rng, population, many, action)
    for weights in (
        WEIGHTS,
        RewardWeights(
            like=0.3,
            dislike=0.2,
            complete=-1.0,
            skip=0.9,
            share=2.0,
            impression=0.7,
            completion_rate=-0.4,
            mood_change=1.5,
        ),
    ):
        drawn = rewards(weights, outcomes.mask, outcomes.completion_rate, outcomes.mood_change)
        mean = drawn.reshape(len(some), repeats).mean(axis=1, dtype=np.float64)
        error = drawn.reshape(len(some), repeats).std(axis=1) / np.sqrt(repeats)
        exact = expected_rewards(population, some, weights)[np.arange(len(some)), action[::repeats]]
        assert np.abs((mean - exact) / error).max() < 4.5
    liked = reaction_flags(outcomes.mask, "like").reshape(len(some), repeats).mean(axis=1)
    exact = like_probabilities(population, some)[np.arange(len(some)), action[::repeats]]
    np.testing.assert_allclose(liked, exact, atol=0.04)


def test_reactions_exclude_each_other_and_an_impression_is_alone(population, visits):
    rng = np.random.default_rng(5)
    outcomes = react(rng, population, visits, rng.integers(0, 27, size=len(visits)))
    flags = {name: reaction_flags(outcomes.mask, name) for name in REACTIONS}
    assert all(flag.any() for flag in flags.values())
    assert not (flags["like"] & flags["dislike"]).any()
    assert not (flags["complete"] & flags["skip"]).any()
    assert not (flags["share"] & ~flags["like"]).any()
    ignored = flags["impression"]
    assert np.all(outcomes.mask[ignored] == 1 << REACTIONS.index("impression"))
    assert np.isnan(outcomes.completion_rate[ignored]).all()
    assert np.isnan(outcomes.mood_change[ignored]).all()
    reported = outcomes.completion_rate[~ignored]
    assert np.all((reported >= 0.0) & (reported <= 1.0))
    assert np.all(outcomes.completion_rate[flags["complete"]] == 1.0)
    told = outcomes.mood_change[~np.isnan(outcomes.mood_change)]
    assert np.all(np.abs(told) <= 1.0)
    assert set(np.unique(outcomes.mood)) == set(range(len(MOODS)))


def test_being_served_well_pays_twice(population, visits):
    suits = population.utilities(visits)
    well, badly = (
        react(np.random.default_rng(6), population, visits, choice)
        for choice in (suits.argmax(axis=1), suits.argmin(axis=1))
    )
    pleasant = np.isin(well.mood, [MOODS.index("happy"), MOODS.index("relaxed")]).mean()
    assert pleasant > np.isin(badly.mood, [MOODS.index("happy"), MOODS.index("relaxed")]).mean()
    assert well.goes_on.mean() > 2 * badly.goes_on.mean()
    assert well.leaves.mean() < 0.2 * badly.leaves.mean()
    assert badly.leaves.any()


def test_a_visit_goes_on_a_few_minutes_later(population, visits):
    rng = np.random.default_rng(7)
    outcomes = react(rng, population, visits, np.zeros(len(visits), dtype=np.uint8))
    after = next_situations(rng, visits, outcomes)
    before = visits[outcomes.goes_on]
    np.testing.assert_array_equal(after.person, before.person)
    np.testing.assert_array_equal(after.content_type, before.content_type)
    np.testing.assert_array_equal(after.mood, outcomes.mood[outcomes.goes_on])
    pause = after.time - before.time
    assert pause.min() >= PAUSE_SECONDS[0]
    assert pause.max() < PAUSE_SECONDS[1]


def test_rules_lie_between_random_and_the_optimum_with_room(population, visits):
    expected = expected_rewards(population, visits, WEIGHTS)
    row = np.arange(len(visits))
    rules = expected[row, rule_table(SPACE)[states(population, visits)]].mean()
    one_for_all = expected.mean(axis=0).max()
    optimum = expected.max(axis=1).mean()
    assert expected.mean() + 0.4 < rules < optimum - 0.6
    assert rules > one_for_all + 0.1
    # Most of the optimum is in what a learner can see: traits and context, not personal taste.
    without_taste = replace(population, tastes=np.zeros_like(population.tastes))
    visible = expected_rewards(without_taste, visits, WEIGHTS).argmax(axis=1)
    assert rules + 0.5 < expected[row, visible].mean() < optimum - 0.03


def test_learning_beats_the_rules_on_people_not_seen(population, visits):
    rng = np.random.default_rng(8)
    logged = []
    people = draw_population(rng, 2000)
    for week in range(3):
        at = draw_visits(rng, people, np.arange(len(people)), START + week * WEEK)
        while len(at):
            state = states(people, at)
            action = np.where(
                rng.random(len(at)) < 0.5, rng.integers(0, 27, len(at)), rule_table(SPACE)[state]
            )
            did = react(rng, people, at, action)
            reward = rewards(WEIGHTS, did.mask, did.completion_rate, did.mood_change)
            logged.append((at.person, at.time, state, action.astype(np.uint8), reward))
            at = next_situations(rng, at, did)
    user, time, state, action, reward = map(np.concatenate, zip(*logged, strict=True))
    batch = prepare(
        Interactions(np.arange(len(user)), user, time, state, action, reward),
        n_contexts=SPACE.n_contexts,
        session_gap=1800,
        settled_before=START + 4 * WEEK,
        min_interactions=5,
    )
    learner = QLearning(SPACE, Hyperparameters(), smoothing=Smoothing(serving_bins=0))
    learner.learn(batch.transitions)
    learned = learner.publish()
    expected = expected_rewards(population, visits, WEIGHTS)
    row, state = np.arange(len(visits)), states(population, visits)
    rules = expected[row, rule_table(SPACE)[state]].mean()
    assert expected[row, learned.likeliest(state, np.zeros((0, 5)))].mean() > rules + 0.1
