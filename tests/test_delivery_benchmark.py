"""What benchmarks/learning_delivery.py simulates: rollouts of better and of worse versions."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.delivery_gates import held_out
from benchmarks.delivery_record import HOLDBACK_PERCENT, Record, Served, arms_of, step_state
from benchmarks.learning_delivery import Event, Service, Use, Weeks, deliver
from benchmarks.learning_delivery_report import ALL, Delivered, days_to_all
from benchmarks.learning_harm import SOME_AT_RANDOM, Harm, made_worse, try_candidate
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import ARMS, NEVER_ACTIVATED, PREVIOUS, RL, RULE_BASED
from recparams_rl.evaluation.rollout import DeliveryRules
from recparams_rl.policy import GreedyTable, Policy
from recparams_rl.reward import RewardWeights
from recparams_simulation.compare.logs import SPACE, START, contexts, states
from recparams_simulation.people.population import DAY, draw_visits
from recparams_simulation.people.simulator import expected_rewards

PEOPLE = Use(people=1_500, weeks=3, looks=14, bins=0)
RULES = DeliveryRules()
PLAIN, ROLLED, BEFORE = (ARMS.index(name) for name in (RULE_BASED, RL, PREVIOUS))


def table(actions: np.ndarray) -> Policy:
    return GreedyTable(SPACE, actions.astype(np.uint8).tobytes(), bytes(SPACE.n_states), 0.0)


def by_reward(service: Service, sign: float) -> Policy:
    """Returns the best action of each state for the people of a service, or the worst."""
    rng = np.random.default_rng(1)
    at = draw_visits(rng, service.population, np.arange(len(service.users)), START)
    mean = sign * expected_rewards(service.population, at, RewardWeights())
    state = states(service.population.traits[at.person], contexts(at))
    sums = np.zeros((SPACE.n_states, N_ACTIONS))
    np.add.at(sums, state, mean)
    (rules,) = service.versions.values()
    usual = rules.likeliest(np.arange(SPACE.n_states), np.empty((0, 5)))
    return table(np.where(sums.any(axis=1), sums.argmax(axis=1), usual))


def serve(version_is: float, percent: float, weeks: int) -> tuple[Service, list[float]]:
    """Serves the best or the worst actions to a share of the people; returns weekly rewards."""
    service = Service(1, PEOPLE, RULES)
    service.versions[1] = by_reward(service, version_is)
    service.start(1, percent, 0.0)
    rewards = []
    for _ in range(weeks):
        _, sums = service.use_week(RULES)
        rewards.append(sums[0, ALL] / sums[1, ALL])
    return service, rewards


def test_a_better_version_reaches_everybody_and_is_then_worth_what_promoting_it_is() -> None:
    service, rewards = serve(1.0, 10.0, 3)
    assert [(one.what, one.percent) for one in service.events] == [
        ("started", 10.0),
        ("advanced", 50.0),
        ("advanced", 100.0),
    ]
    ends = [7.0 * one.weeks for one in service.events]
    assert ends[1] >= RULES.step_seconds / DAY
    assert ends[2] - ends[1] >= RULES.step_seconds / DAY
    assert all(one.people >= RULES.step_people for one in service.events[1:])
    assert ends[2] <= 14.0
    _, at_once = serve(1.0, 100.0, 3)
    assert at_once[0] > rewards[0] + 0.03
    assert rewards[2] == pytest.approx(at_once[2], abs=0.03)


def test_a_worse_version_is_taken_back_at_its_first_step() -> None:
    service, rewards = serve(-1.0, 10.0, 2)
    assert [(one.what, one.percent) for one in service.events] == [
        ("started", 10.0),
        ("taken back", 0.0),
    ]
    assert service.record.current.arms().keys() == {RULE_BASED}
    untouched = Service(1, PEOPLE, RULES)
    usual = [float(np.divide(*untouched.use_week(RULES)[1][:, ALL])) for _ in range(2)]
    assert rewards[0] < usual[0] - 0.005
    assert rewards[1] == pytest.approx(usual[1], abs=0.03)


def test_a_candidate_that_is_worse_is_made_and_tried() -> None:
    service = Service(1, PEOPLE, None)
    service.versions[1] = best = by_reward(service, 1.0)
    service.states[1] = 1
    service.start(1, 100.0, 0.0)
    log, _ = service.use_week(None)
    mean = expected_rewards(service.population, log.at, RewardWeights())
    rng = np.random.default_rng(1)
    random = table(rng.integers(N_ACTIONS, size=SPACE.n_states))
    made = made_worse(rng, best, random, log, mean, 0.3)
    assert made is not None
    candidate, worse = made
    assert worse == pytest.approx(0.3, abs=0.06)
    assert made_worse(rng, best, best, log, mean, 0.3) is None
    events = service.events.copy()
    found = try_candidate(service, log, candidate, SOME_AT_RANDOM, worse)
    assert not found.got_beyond
    assert (found.fate, found.age) == ("taken back", 1)
    assert found.people > 50
    # The service that it was tried in goes on as if it had not been.
    assert (service.week, service.events, list(service.versions)) == (1, events, [0, 1])


def test_a_newer_version_waits_and_takes_the_place_of_one_that_stays_long() -> None:
    record = Record("a")
    record.promote(1, 100.0, 0.0)
    record.promote(2, 10.0, 10.0)
    experiment = record.current.experiment_id
    record.promote(2, 50.0, 20.0)
    assert [plan.split.percent for plan in record.experiment()] == [10.0, 50.0]
    assert record.current.experiment_id == experiment
    # Whoever is not in the new rollout goes on with what was settled before the unfinished one.
    record.promote(3, 10.0, 30.0)
    assert (record.current.version, record.current.baseline, record.current.settled) == (3, 1, 1)
    assert record.seconds(35.0) == 5.0
    record.take_back(40.0)
    assert (record.current.version, record.ramp(40.0)) == (1, None)
    record.take_back(50.0)
    assert record.current.version == NEVER_ACTIVATED.version


def test_who_is_held_back_stays_so_and_all_who_have_the_rules_are_one_arm() -> None:
    record, users = Record("a"), np.arange(2_000)
    record.promote(1, 10.0, 0.0)
    first = arms_of(record.current, users)
    assert set(first) == {ROLLED, PLAIN}
    record.promote(1, 100.0, 1.0)
    held_back = arms_of(record.current, users) == PLAIN
    assert 100.0 * held_back.mean() == pytest.approx(HOLDBACK_PERCENT, abs=1.5)
    record.promote(2, 10.0, 2.0)
    later = arms_of(record.current, users)
    assert np.array_equal(later == PLAIN, held_back)
    assert np.mean(later == ROLLED) == pytest.approx(0.095, abs=0.02)
    assert not np.array_equal(later == ROLLED, first == ROLLED)


def test_a_look_counts_people_of_the_step_and_rewards_of_the_whole_comparison() -> None:
    record, users = Record("a"), np.arange(4_000)
    record.promote(1, 100.0, 0.0)
    served = []
    rng = np.random.default_rng(1)
    for percent in (10.0, 50.0):
        record.promote(2, percent, percent)
        arm = arms_of(record.current, users)
        user, twice = np.tile(users, 2), np.tile(arm, 2)
        reward = (rng.normal(size=len(user)) + 0.2 * (twice == ROLLED)).astype(np.float32)
        served.append(Served(record.current.id, user, twice, reward))
    plans = record.experiment()
    state = step_state(plans, served, 5.0)
    assert (state.percent, state.seconds) == (50.0, 5.0)
    assert state.people == min(np.count_nonzero(arm == one) for one in (ROLLED, BEFORE))
    assert not state.worse
    assert not state.mismatch
    assert state.low < state.difference == pytest.approx(0.2, abs=0.06)
    # Nobody has been served at the step yet.
    record.promote(2, 60.0, 70.0)
    none_yet = step_state(record.experiment(), served, 0.0)
    assert none_yet.people == 0
    assert np.isnan(none_yet.difference)


def test_weeks_of_use_are_counted_and_end_untrained() -> None:
    use = Use(people=60, weeks=2, looks=2, bins=0)
    promoted = deliver(1, use, None)
    assert [(one.what, one.version, one.weeks) for one in promoted.events] == [
        ("activated", 1, 1.0)
    ]
    staged = deliver(1, use, RULES)
    # A log so small passes no gate, so that the rules are served on.
    assert [one.what for one in staged.events] == ["refused"]
    assert staged.reward[0].tolist() == promoted.reward[0].tolist()
    assert np.all(staged.interactions[:, 1] < staged.interactions[:, 0])


def test_the_latest_half_is_held_out() -> None:
    assert held_out(np.array([3, 1, 4, 2])).tolist() == [True, False, True, False]


def test_targets_of_delivery_are_met_or_said_not_to_be() -> None:
    def weeks(reward: float, *events: Event) -> Weeks:
        return Weeks(np.array([[reward, reward]] * 2), np.ones((2, 2)), events)

    harm = Harm(1, 4, SOME_AT_RANDOM, 0.2, True, 10.0, "advanced", 6.0, 120)
    staged = weeks(0.895, Event(1.0, 1, "started", 10.0), Event(1.5, 1, "advanced", 100.0))
    good = Delivered([weeks(0.9)], [staged], [harm])
    assert [(one.measured, one.met) for one in good.targets()] == [("+0.005", True), ("0", True)]
    assert days_to_all(staged) == [3.5]
    assert "1 reached everybody, 3.5 days" in good.fates()
    bad = Delivered([weeks(0.92)], [staged], [replace(harm, refused=False)])
    assert [(one.measured, one.met) for one in bad.targets()] == [("+0.025", False), ("1", False)]
    assert bad.harm_table().rows[0][-2:] == ("1", "1")
