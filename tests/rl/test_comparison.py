"""Comparing policies: segments cover the log, the front is a front, and the truth is found."""

from statistics import NormalDist

import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.comparison import Comparison, Log, Target, _pareto, compare
from recparams_rl.evaluation.estimators import ESTIMATORS, rounds
from recparams_rl.evaluation.people import standard_error
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.evaluation.segments import segments
from recparams_rl.objectives import LEVELS, Objectives
from recparams_rl.policy import GreedyTable, rule_based_policy
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.rules import rule_table
from recparams_rl.state import TRAITS, StateSpace
from recparams_simulation.people.population import WEEK, draw_population, draw_visits
from recparams_simulation.people.simulator import expected_rewards, react

SPACE = StateSpace()
EPSILON = 0.4
RULES = Target("rules", 0, rule_based_policy(SPACE, 0.0))
RANDOM = Target("random", 0, None)
ALWAYS_13 = GreedyTable(SPACE, bytes([13]) * SPACE.n_states, bytes(SPACE.n_states), 0.0)
CONSTANT = Target("constant", 7, ALWAYS_13)


@pytest.fixture(scope="module")
def logged() -> tuple[Log, np.ndarray]:
    """A log of the rules with exploration, and the exact mean reward of every action."""
    rng = np.random.default_rng(5)
    people = draw_population(rng, 2500)
    at = draw_visits(rng, people, np.arange(len(people)), 8 * WEEK)
    traits = people.traits[at.person]
    state = SPACE.index_columns(traits, at.content_type, at.mood, at.time_of_day)
    greedy = rule_table(SPACE)[state]
    explore = rng.random(len(at)) < EPSILON
    action = np.where(explore, rng.integers(0, N_ACTIONS, len(at)), greedy).astype(np.uint8)
    did = react(rng, people, at, action)
    pscore = EPSILON / N_ACTIONS + (1 - EPSILON) * (action == greedy)
    engagement = rewards(RewardWeights(), did.mask, did.completion_rate, did.mood_change)
    log = Log(
        state,
        action,
        engagement,
        pscore.astype(np.float32),
        at.person,
        traits.astype(np.float32),
    )
    return log, expected_rewards(people, at, RewardWeights())


@pytest.fixture(scope="module")
def compared(logged: tuple[Log, np.ndarray]) -> Comparison:
    rng = np.random.default_rng(0)
    return compare(SPACE, logged[0], [RULES, RANDOM, CONSTANT], Objectives(), rng=rng)


def test_estimates_hold_the_truth(logged: tuple[Log, np.ndarray], compared: Comparison) -> None:
    log, expected = logged
    truth = {
        "rules": expected[np.arange(len(log)), rule_table(SPACE)[log.state]].mean(),
        "random": expected.mean(),
        "constant": expected[:, 13].mean(),
    }
    for report in compared.policies:
        assert [one.name for one in report.estimates] == [one.name for one in ESTIMATORS]
        for one in report.estimates:
            if one.name == "dm":
                continue
            assert [interval.method for interval in one.intervals] == ["normal", "bootstrap"]
            for interval in one.intervals:
                # Twice the 95 % interval: one log may be unlucky, and the seed is fixed.
                centre, half = one.value, (interval.high - interval.low) / 2
                assert abs(truth[report.target.name] - centre) < 2 * half, (report.target, one)


def test_every_pair_is_compared_once(compared: Comparison) -> None:
    pairs = [(pair.policy, pair.other) for pair in compared.pairs]
    assert pairs == [("rules", "random"), ("rules", "constant"), ("random", "constant")]
    assert compared.pairs[0].difference.intervals[0].low > 0


def test_segments_divide_the_log(logged: tuple[Log, np.ndarray], compared: Comparison) -> None:
    log, _ = logged
    for report in compared.policies:
        sizes: dict[str, int] = {}
        for segment in report.segments:
            sizes[segment.dimension] = sizes.get(segment.dimension, 0) + segment.estimates[0].n
        assert set(sizes) == {"content_type", "mood", "time_of_day", *TRAITS}
        assert set(sizes.values()) == {len(log)}
    terciles = [s.estimates[0].n for s in compared.policies[0].segments if s.dimension == TRAITS[0]]
    assert len(terciles) == 3
    assert min(terciles) > len(log) / 4


def test_a_segment_is_what_its_rows_alone_say(
    logged: tuple[Log, np.ndarray], compared: Comparison
) -> None:
    """Against terms of rounds, as they are written; only the order of summation differs."""
    log, _ = logged
    assert log.traits is not None
    modelled = estimate_rewards(SPACE, log.state, log.action, log.engagement, log.person)
    z = NormalDist().inv_cdf(0.975)
    for report in compared.policies:
        dist = report.target.action_dist(log.state, log.traits)
        seen = rounds(log.engagement, log.action, log.pscore, dist, modelled, log.person)
        found = {(one.dimension, one.value): one.estimates for one in report.segments}
        masks = {(d, v): rows for d, v, rows in segments(SPACE, log.state, log.traits)}
        assert list(found) == list(masks)
        for part, rows in masks.items():
            person = np.unique(log.person[rows], return_inverse=True)[1].astype(np.int32)
            for estimator, one in zip(ESTIMATORS, found[part], strict=True):
                assert (one.n, one.clusters) == (rows.sum(), person.max() + 1)
                if one.reason:
                    continue
                value, terms = estimator.influence(seen[rows])
                margin = z * standard_error(terms, person)
                expected = (value, value - margin, value + margin)
                given = (one.value, one.intervals[0].low, one.intervals[0].high)
                assert given == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_action_shares(logged: tuple[Log, np.ndarray], compared: Comparison) -> None:
    rules, random, constant = compared.policies
    for report in compared.policies:
        assert sum(report.action_shares) == pytest.approx(1)
    assert len(set(random.action_shares)) == 1
    assert constant.action_shares[13] == 1
    share = np.mean(rule_table(SPACE)[logged[0].state] == 4)
    assert rules.action_shares[4] == pytest.approx(share)


def test_objectives_of_the_action_are_exact(compared: Comparison) -> None:
    constant = compared.policies[2].objectives
    assert constant["diversity"].value == pytest.approx(LEVELS[13, 0])
    assert constant["novelty"].value == pytest.approx(LEVELS[13, 1])
    overall = {one.name: one.value for one in compared.policies[2].estimates}
    assert constant["engagement"].value == pytest.approx(overall["dr"], abs=1e-6)


def test_weights_of_objectives_change_the_value_by_what_they_weigh(
    logged: tuple[Log, np.ndarray], compared: Comparison
) -> None:
    weighed = compare(
        SPACE, logged[0], [CONSTANT], Objectives(2.0, 0.5, 1.0), by_segment=False
    ).policies[0]
    before = compared.policies[2]
    for new, old in zip(weighed.estimates, before.estimates, strict=True):
        if new.name in ("dm", "dr", "switch-dr"):
            gained = 0.5 * LEVELS[13, 0] + LEVELS[13, 1]
            assert new.value == pytest.approx(2 * old.value + gained, abs=1e-4)


def test_an_empty_log() -> None:
    nothing = Log(
        np.empty(0, np.int32),
        np.empty(0, np.uint8),
        np.empty(0, np.float32),
        np.empty(0, np.float32),
        np.empty(0, np.int64),
        np.empty((0, 5), np.float32),
    )
    report = compare(SPACE, nothing, [RULES, RANDOM], Objectives())
    for policy in report.policies:
        assert policy.segments == ()
        assert not policy.pareto_optimal
        for one in policy.estimates:
            assert np.isnan(one.value)
            assert one.reason


@pytest.mark.parametrize(
    ("values", "optimal"),
    [
        ([[1, 1], [2, 0], [0, 0]], [True, True, False]),
        ([[1, 1], [1, 1]], [True, True]),
        ([[1, float("nan")], [0, 0]], [False, True]),
        ([[1, 0], [1, 1]], [False, True]),
    ],
)
def test_the_pareto_front(values: list[list[float]], optimal: list[bool]) -> None:
    assert _pareto(values) == optimal
