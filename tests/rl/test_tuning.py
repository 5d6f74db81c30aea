"""The grid of a tuning, intervals that hold together, and the choice where the truth is known."""

from collections.abc import Callable
from dataclasses import replace
from math import isnan
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.grid import Configuration, grid
from recparams_rl.evaluation.simultaneous import together
from recparams_rl.evaluation.tuning import Later, Tuning, tune
from recparams_rl.exploration import OFF, Exploration
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace
from recparams_rl.transitions import Interactions, Transitions, prepare

SPACE = StateSpace(
    bins=1, content_types=("music",), moods=("calm", "happy"), times_of_day=("night",)
)
EXPLORATIONS = {"off": OFF, "schedule": Exploration(0.2), "0.05": Exploration(0.05)}
COARSE = Smoothing(serving_bins=3)
PRESENT = Configuration("q_learning", settings_of("q_learning", {}), COARSE)
RULES_FOR_EVER = replace(PRESENT, smoothing=replace(COARSE, caution=1e6))
Worth = Callable[[np.ndarray], np.ndarray]


def small_grid(present: Configuration) -> tuple[Configuration, ...]:
    """The grid without what is served on many bins."""
    return tuple(
        one for one in grid(present, EXPLORATIONS, deep=False) if one.smoothing.serving_bins == 3
    )


def log(worth: Worth, people: int = 300, each: int = 8) -> tuple[Transitions, Later]:
    """Uniformly random actions of people whose reward is 1 with a probability `worth(action)`."""
    rng = np.random.default_rng(5)
    n = 2 * people * each
    action = rng.integers(N_ACTIONS, size=n).astype(np.uint8)
    reward = (rng.random(n) < worth(action)).astype(np.float32)
    traits = rng.uniform(20, 80, (n, 5)).astype(np.float32)
    context = rng.integers(2, size=n).astype(np.int32)
    person = rng.integers(people, size=n)
    half = slice(0, n // 2)
    interactions = Interactions(np.arange(n), person, np.arange(n), context, action, reward, traits)
    batch = prepare(
        interactions[half],
        n_contexts=2,
        session_gap=1,
        settled_before=n,
        min_interactions=1,
    )
    rest = slice(n // 2, n)
    pscore = np.full(n, 1 / N_ACTIONS, dtype=np.float32)
    later = Later(*(c[rest] for c in (traits, context, action, reward, pscore, person)))
    return batch.transitions, later


def test_a_grid_begins_with_the_present_and_varies_one_thing() -> None:
    found = grid(PRESENT, EXPLORATIONS, deep=True)
    assert found[0] == PRESENT
    assert len(set(found)) == len(found)
    names = [one.name(PRESENT) for one in found]
    assert names[0] == "present settings"
    assert len(set(names)) == len(names)
    assert {one.algorithm for one in found} == set(LEARNERS)
    for expected in (
        "learning_rate=0.03",
        "caution=1",
        "serving_bins=9",
        "discount_factor=0.5, foresight=1",
        "lin_ts, spread=0.2",
        "exploration=0.05",
    ):
        assert expected in names
    assert {one.algorithm for one in grid(PRESENT, EXPLORATIONS, deep=False)} == set(LEARNERS) - {
        "dqn",
        "actor_critic",
    }


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_the_changes_make_a_configuration_of_the_present_one(algorithm: str) -> None:
    present = replace(PRESENT, algorithm=algorithm, hyperparameters=settings_of(algorithm, {}))
    found = grid(present, EXPLORATIONS, deep=True)
    assert not found[0].changes(present)
    for one in found[1:]:
        changes = one.changes(present)
        assert changes
        if one.algorithm != algorithm:
            assert changes["algorithm"] == one.algorithm
        if "caution" in changes:
            assert float(changes["caution"]) == one.smoothing.caution


def test_parameters_of_an_algorithm_that_is_left_are_taken_back() -> None:
    spread = settings_of("lin_ts", {"spread": 0.3})
    present = Configuration("lin_ts", spread, Smoothing())
    changes = Configuration("ucb", settings_of("ucb", {}), Smoothing()).changes(present)
    assert changes == {"algorithm": "ucb", "algorithm_parameters": ""}


@settings(max_examples=20)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.8, 0.95]))
def test_intervals_together_are_between_one_and_bonferroni(
    k: int, seed: int, confidence: float
) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(60)
    deviations = rng.uniform(0, 1, (k, 1)) * rng.standard_normal((k, 60)) + shared
    deviations -= deviations.mean(axis=1, keepdims=True)
    differences = rng.normal(0, 0.1, k)
    found = together(differences, deviations, 300, confidence)

    def quantile(tail: float) -> float:
        return NormalDist().inv_cdf(1 - tail / 2)

    alpha = 1 - confidence
    assert quantile(alpha) - 0.06 < found.critical < quantile(alpha / k) + 0.1
    outside = np.abs(differences) > found.critical * found.errors
    # An interval leaves out 0 if and only if its adjusted p-value is below alpha.
    assert (outside == (found.p_values < alpha)).mean() == 1.0
    order = np.argsort(np.abs(differences) / found.errors)
    assert (np.diff(found.p_values[order]) <= 0).all()


def test_the_same_difference_many_times_costs_nothing() -> None:
    deviations = np.tile(np.random.default_rng(1).standard_normal(50), (8, 1))
    found = together(np.full(8, 0.1), deviations, 100, 0.95)
    assert found.critical == pytest.approx(1.96, abs=0.04)


def verdicts(found: Tuning) -> dict[str, str]:
    present = found.rows[0].configuration
    return {row.configuration.name(present): row.verdict for row in found.rows}


def best_is_not_the_rules(action: np.ndarray) -> np.ndarray:
    rules = set(rule_table(replace(SPACE, bins=3)).tolist())
    wanted = next(one for one in range(N_ACTIONS) if one not in rules)
    return np.where(action == wanted, 0.95, 0.1)


def test_what_is_better_is_shown_and_the_simplest_of_it_chosen() -> None:
    earlier, later = log(best_is_not_the_rules)
    seen = []
    found = tune(
        SPACE,
        earlier,
        later,
        small_grid(RULES_FOR_EVER),
        on_policy=lambda one, _: seen.append(one),
    )
    assert set(seen) == set(small_grid(RULES_FOR_EVER))
    assert len(seen) == len(found.rows)
    chosen = found.rows[found.chosen]
    assert (found.outcome, chosen.verdict) == ("better", "better")
    assert chosen.configuration.changes(RULES_FOR_EVER) == {"caution": "0"}
    assert chosen.low <= 0.85 <= chosen.high + 0.02
    assert chosen.p_value < 0.001
    assert (found.learned, found.valued, found.people) == (len(earlier), len(later), 300)
    # More exploration of what is no better than chance costs nothing; it is never the choice.
    assert found.rows[found.chosen].configuration.exploration == "off"


def energy_is_liked(action: np.ndarray) -> np.ndarray:
    return np.array([0.1, 0.5, 0.9])[action // 9]


def test_the_present_is_kept_where_nothing_is_shown_better() -> None:
    earlier, later = log(energy_is_liked)
    found = tune(SPACE, earlier, later, small_grid(PRESENT))
    assert found.chosen == 0
    assert found.outcome in ("undecided", "best")
    named = verdicts(found)
    assert named["present settings"] == "present"
    assert named["expected_sarsa"] == named["double_q_learning"] == "alike"
    assert named["exploration=schedule"] == "worse"
    costs = {
        row.configuration.exploration: row.difference
        for row in found.rows
        if row.configuration.exploration != "off"
    }
    # One is 0.2 of the way to chance, the other 0.05.
    assert costs["schedule"] == pytest.approx(4 * costs["0.05"])
    again = tune(SPACE, earlier, later, small_grid(PRESENT), threads=2)
    # Not by ==: a NaN is not equal to itself.
    assert repr(found) == repr(again)


def test_less_exploration_is_shown_to_be_better_and_not_chosen() -> None:
    earlier, later = log(energy_is_liked)
    exploring = replace(PRESENT, exploration="schedule", explores=Exploration(0.2))
    found = tune(SPACE, earlier, later, small_grid(exploring))
    assert verdicts(found)["exploration=off"] == "better"
    assert found.rows[found.chosen].configuration.exploration == "schedule"


def test_a_log_without_exploration_is_refused_and_little_is_learned() -> None:
    earlier, later = log(best_is_not_the_rules)
    stuck = replace(later, pscore=np.ones(len(later), np.float32), action=0 * later.action)
    seen = []
    found = tune(
        SPACE, earlier, stuck, small_grid(PRESENT), on_policy=lambda one, _: seen.append(one)
    )
    assert seen == [PRESENT]
    assert (found.chosen, found.outcome) == (0, "undecided")
    assert {row.verdict for row in found.rows[1:]} == {"refused"}
    assert all(row.reason and isnan(row.difference) for row in found.rows)


def test_nothing_at_all_is_refused() -> None:
    earlier, later = log(best_is_not_the_rules)
    none = np.zeros(len(later), dtype=np.bool_)
    empty = Later(*(column[none] for column in vars(later).values()))
    found = tune(SPACE, earlier[:0], empty, small_grid(PRESENT))
    assert (found.chosen, found.outcome, found.valued) == (0, "undecided", 0)
    assert found.rows[0].reason == "the log is of 0 people, fewer than 20"


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_confidence_out_of_range_is_refused(confidence: float) -> None:
    earlier, later = log(best_is_not_the_rules, people=30, each=2)
    with pytest.raises(ValueError, match="confidence"):
        tune(SPACE, earlier, later, (PRESENT,), confidence=confidence)
