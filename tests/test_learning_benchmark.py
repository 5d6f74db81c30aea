"""What benchmarks/learning.py measures with: limits, weeks of use, and targets."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.learning_limits import BY_CELL, BY_PROFILE, best_by_cell, best_by_profile
from benchmarks.learning_report import SETTLED, Found, targets_table, text
from benchmarks.learning_trials import OURS, RULES, Worth, learn_logs, use_for_weeks
from recparams_rl.action import N_ACTIONS
from recparams_rl.policy import GreedyTable, rule_based_policy
from recparams_rl.reward import RewardWeights
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace
from recparams_simulation.compare.logs import SPACE, START, joined, play, states
from recparams_simulation.compare.measure import HeldOut, Plan, draw_held_out, draw_logs
from recparams_simulation.compare.systems import RulesSystem, one_hot
from recparams_simulation.people.population import draw_population, draw_visits
from recparams_simulation.people.simulator import expected_rewards
from recparams_simulation.people.worlds import KINDS, draw_world

SMALL = Plan(sizes=(400,), seeds=1, held_out=1500, visits=50)
COARSE = Smoothing(serving_bins=0)


def regret(held_out: HeldOut, actions: np.ndarray) -> float:
    return held_out.best - held_out.value(one_hot(actions))


@pytest.mark.parametrize("kind", KINDS)
def test_limits_lie_between_the_best_and_what_can_be_learned(kind: str) -> None:
    held_out = draw_held_out(np.random.default_rng(1), SMALL, draw_world(kind, 1))
    by_profile = regret(held_out, best_by_profile(held_out))
    by_cell = regret(held_out, best_by_cell(np.random.default_rng(2), held_out))
    rules = held_out.best - held_out.value(
        RulesSystem().action_dist(held_out.log.traits, held_out.log.context)
    )
    assert 0.0 <= by_profile < by_cell + 0.002
    assert by_cell < 0.3
    if kind == "good_rules":
        # There is next to nothing to be gained.
        assert by_cell < rules + 0.01
    else:
        assert by_cell < rules - 0.2


def test_the_profile_tells_all_of_people_without_tastes_of_their_own() -> None:
    held_out = draw_held_out(np.random.default_rng(3), SMALL)
    typical = replace(held_out.population, tastes=np.zeros_like(held_out.population.tastes))
    mean = expected_rewards(typical, held_out.log.at, RewardWeights())
    # The mean over tastes is not quite the reward at the mean taste, but nearly always as best.
    assert (best_by_profile(held_out) == mean.argmax(axis=1)).mean() > 0.9


def test_best_by_cell_is_one_action_for_a_state() -> None:
    held_out = draw_held_out(np.random.default_rng(3), SMALL)
    actions = best_by_cell(np.random.default_rng(2), held_out)
    pairs = np.unique(np.stack([held_out.log.state, actions]), axis=1)
    assert pairs.shape[1] == len(np.unique(held_out.log.state))


def test_a_log_is_learned_by_systems_of_ones_choice() -> None:
    found = learn_logs(
        replace(SMALL, world="jumps"), 7, (RULES, "lin_ucb"), visits=True, smoothing=COARSE
    )
    assert [(one.kind, one.size, one.system, one.seed) for one in found] == [
        ("jumps", 400, RULES, 7),
        ("jumps", 400, "lin_ucb", 7),
    ]
    assert all(one.regret > 0.0 and one.per_visit is not None for one in found)
    _, held_out = draw_logs(replace(SMALL, world="jumps"), 7)
    rules = RulesSystem().action_dist(held_out.log.traits, held_out.log.context)
    assert found[0].regret == held_out.best - held_out.value(rules)


def test_weeks_of_use_begin_with_the_rules_and_go_on_from_what_was_learned() -> None:
    regrets = use_for_weeks(SMALL, 3, 2, 200, COARSE)
    assert len(set(regrets)) == 3
    assert regrets[:2] == use_for_weeks(SMALL, 3, 1, 200, COARSE)


def test_leavers_are_played_out_and_newcomers_take_their_places() -> None:
    rng = np.random.default_rng(4)
    people = draw_population(rng, 400, draw_world("good_rules", 1))
    visits = draw_visits(rng, people, np.arange(400), START)
    log, leavers = play(rng, people, visits, rule_based_policy(SPACE, 0.0), 1.0)
    assert np.all(np.diff(log.at.time) >= 0)
    assert np.allclose(log.propensity, 1 / 27)
    assert 0 < len(leavers) < 100
    newcomers = draw_population(rng, len(leavers), people.world)
    after = people.replaced(leavers, newcomers)
    stayed = np.setdiff1d(np.arange(400), leavers)
    for name in ("traits", "tastes", "visits_per_week", "mood_logits"):
        column = getattr(after, name)
        assert np.array_equal(column[stayed], getattr(people, name)[stayed])
        assert np.array_equal(column[leavers], getattr(newcomers, name))
    assert after.world is people.world
    assert not np.array_equal(after.traits, people.traits)
    assert len(people.replaced(leavers[:0], draw_population(rng, 0))) == 400


def test_a_policy_is_played_on_its_own_bins() -> None:
    rng = np.random.default_rng(4)
    people = draw_population(rng, 50)
    visits = draw_visits(rng, people, np.arange(50), START)
    fine = StateSpace(bins=7)
    actions = rng.integers(N_ACTIONS, size=fine.n_states).astype(np.uint8)
    policy = GreedyTable(fine, actions.tobytes(), bytes(fine.n_states), 0.0)
    log, _ = play(rng, people, visits, policy, 0.0)
    assert np.array_equal(log.action, actions[states(log.traits, log.context, fine)])
    assert np.all(log.propensity == 1.0)


def test_logs_are_joined_by_time() -> None:
    rng = np.random.default_rng(4)
    people = draw_population(rng, 50)
    visits = draw_visits(rng, people, np.arange(50), START)
    half = len(visits) // 2
    policy = rule_based_policy(SPACE, 0.0)
    first, second = (
        play(rng, people, visits[r], policy, 1.0)[0] for r in (slice(half), slice(half, None))
    )
    nothing = play(rng, people, visits[:0], policy, 1.0)[0]
    whole = joined([second, nothing, first])
    assert len(whole) == len(first) + len(second)
    assert np.all(np.diff(whole.at.time) >= 0)
    assert whole.reward.sum() == pytest.approx(first.reward.sum() + second.reward.sum(), rel=1e-4)


def found_with(ours: dict[int, float], weekly: list[float], visit: float = 3.8) -> Found:
    """Returns made-up results of two seeds, the same in all worlds."""
    worths = [
        Worth(kind, size, system, seed, regret + 0.01 * seed)
        for kind in KINDS
        for seed in (0, 1)
        for size in (10, 20, 30)
        for system, regret in ((RULES, 0.7), (OURS, ours[size]), ("lin_ucb", 0.3))
    ]
    worths += [
        Worth(kind, 0, limit, seed, 0.1)
        for kind in KINDS
        for seed in (0, 1)
        for limit in (BY_CELL, BY_PROFILE)
    ]
    worths += [
        Worth("own", 40, system, seed, ours[40], visit)
        for seed in (0, 1)
        for system in (RULES, OURS)
    ]
    return Found((10, 20, 30), 40, worths, np.array([weekly, weekly]))


def test_targets_are_met_or_said_not_to_be() -> None:
    falling = [0.7, 0.5, 0.4, 0.3, 0.3, 0.25, 0.24, 0.25]
    assert len(falling) > SETTLED + 1
    good = found_with({10: 0.704, 20: 0.29, 30: 0.2, 40: 0.18}, falling)
    assert all(one.met for one in good.targets())
    assert len(good.targets()) == 5 + 10 + 3 + 1 + 1

    bad = found_with({10: 0.71, 20: 0.38, 30: 0.31, 40: 0.2}, [*falling, 0.26], visit=3.7)
    assert not any(one.met for one in bad.targets())
    lines = targets_table(bad.targets()).markdown().splitlines()[2:]
    assert lines[0] == (
        "| own: regret after 10, minus the rules' | +0.010 ± 0.000 | <= +0.005 | **not met** |"
    )
    assert "minus that of the best peer, lin_ucb | +0.080 ± 0.000 | <= 0" in lines[5]
    assert (
        lines[-2] == "| own: reward of a visit after 40 | 3.700 ± 0.000 | >= 3.75 | **not met** |"
    )
    assert "regret in week 8, the worst after week 5" in lines[-1]


def test_means_are_given_with_their_standard_error() -> None:
    assert text(np.array([1.0, 2.0, 3.0])) == "2.000 ± 0.577"
    assert text(np.array([0.25]), sign=True) == "+0.250"
