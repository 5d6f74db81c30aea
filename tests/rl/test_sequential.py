"""Confidence sequences: their closed form, and how often they err when looked at all the time."""

from dataclasses import astuple
from functools import cache
from math import inf, isinf, log, sqrt
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from recparams_rl.evaluation.sequential import ArmTotals, Difference, boundary, difference
from recparams_rl.reward import RewardWeights, rewards
from recparams_simulation.people.population import WEEK, draw_population, draw_visits
from recparams_simulation.people.simulator import react

Rows = list[tuple[int, float, bool]]

LOOKS = 200


def totals(rows: Rows) -> ArmTotals:
    return ArmTotals.of(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.float64),
        np.array([row[2] for row in rows], dtype=np.bool_),
    )


def one_each(values: list[float]) -> ArmTotals:
    """An arm of people with one interaction each."""
    return totals([(person, value, False) for person, value in enumerate(values)])


def interval(found: Difference) -> list[float]:
    return [found.value, found.low, found.high, found.standard_error]


# Eighths, so that equal rewards stay equal when a constant is added.
eighths = st.integers(-40, 40).map(lambda k: k / 8)


def arms(least: int) -> st.SearchStrategy[Rows]:
    return st.lists(st.tuples(st.integers(0, 9), eighths, st.booleans()), min_size=least)


# --- closed forms


@given(arms(0))
def test_totals_are_what_a_loop_finds(rows: Rows) -> None:
    people: dict[int, list[float]] = {}
    for person, reward, _ in rows:
        people.setdefault(person, []).append(reward)
    y = [sum(own) for own in people.values()]
    c = [len(own) for own in people.values()]
    found = totals(rows)
    assert astuple(found) == (
        len(people),
        len(rows),
        sum(like for _, _, like in rows),
        sum(y),
        sum(reward**2 for _, reward, _ in rows),
        sum(a**2 for a in y),
        sum(a * b for a, b in zip(y, c, strict=True)),
        sum(b**2 for b in c),
    )
    if not rows:
        return
    mean, n = sum(y) / sum(c), len(people)
    assert found.mean_reward == pytest.approx(mean, abs=1e-12)
    assert found.like_rate == sum(like for _, _, like in rows) / len(rows)
    spread = sum((a - mean * b) ** 2 for a, b in zip(y, c, strict=True))
    if n == 1:
        assert found.variance == inf
    else:
        expected = spread * n / (n - 1) / sum(c) ** 2
        assert found.variance == pytest.approx(expected, rel=1e-9, abs=1e-10)
    assert found.reward_spread == pytest.approx(
        sum((reward - mean) ** 2 for _, reward, _ in rows), rel=1e-9, abs=1e-9
    )


@given(arms(0), arms(0))
def test_totals_of_different_people_add_up(some: Rows, others: Rows) -> None:
    others = [(person + 100, reward, like) for person, reward, like in others]
    added = (a + b for a, b in zip(astuple(totals(some)), astuple(totals(others)), strict=True))
    assert astuple(totals(some + others)) == tuple(added)


@given(arms(1), st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=60, max_size=60))
def test_weights_count_like_so_many_interactions(rows: Rows, weights: list[float]) -> None:
    assume(len(rows) <= len(weights))
    person, reward, like = (np.array(column) for column in zip(*rows, strict=True))
    weight = np.array(weights[: len(rows)])
    found = ArmTotals.of(person, reward, like, weight)
    repeats = (2 * weight).astype(int)
    repeated = ArmTotals.of(*(column.repeat(repeats) for column in (person, reward, like)))
    assert (found.persons, found.interactions) == (repeated.persons, len(rows))
    assert found.mean_reward == pytest.approx(repeated.mean_reward, abs=1e-12)
    assert found.like_rate == pytest.approx(repeated.like_rate)
    assert found.variance == pytest.approx(repeated.variance, rel=1e-6, abs=1e-9)
    scale = len(rows) / repeated.interactions
    assert found.reward_spread == pytest.approx(repeated.reward_spread * scale, rel=1e-6, abs=1e-9)


def test_with_one_interaction_each_the_variance_is_that_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=50)
    assert one_each(list(values)).variance == pytest.approx(values.var(ddof=1) / 50)


@pytest.mark.parametrize(
    ("m", "alpha", "expected"),
    [
        # 2 * 9/8 * log(3 / 0.05) = 9.2123, and 2 * 4/3 * log(2 / 0.1) = 7.9886.
        (8.0, 0.05, 3.03517),
        (3.0, 0.1, 2.82641),
        (0.0, 0.05, inf),
    ],
)
def test_the_boundary(m: float, alpha: float, expected: float) -> None:
    assert boundary(m, alpha) == pytest.approx(expected, rel=1e-5)


def test_the_boundary_is_wider_than_an_interval_for_one_look() -> None:
    assert min(boundary(m, 0.05) for m in np.geomspace(1e-6, 1e9, 1000)) > 2.5


def test_a_difference_worked_out_by_hand() -> None:
    found = difference(one_each([1.0] * 75 + [0.0] * 25), one_each([1.0] * 25 + [0.0] * 75))
    assert found.value == 0.5
    assert found.standard_error == pytest.approx(sqrt(2 * 0.1875 / 99))
    # Information of 4 * 0.1875 / (2 * 0.1875 / 99) = 198 people, and rho^2 = 7.93615 / 1000.
    m = 198 * 0.00793615
    half_width = found.standard_error * sqrt(2 * (m + 1) / m * log(sqrt(m + 1) / 0.05))
    assert [found.low, found.high] == pytest.approx([0.5 - half_width, 0.5 + half_width], rel=1e-6)
    assert (found.persons, found.started, found.verdict) == (200, True, "better")


def test_no_arm_counts_as_less_spread_than_both_on_average() -> None:
    calm, wild = [0.4, 0.6] * 50, [-4.0, 5.0] * 150
    found = difference(one_each(calm), one_each(wild))
    spreads = np.var(calm, ddof=1), np.var(wild, ddof=1)
    average = (100 * spreads[0] + 300 * spreads[1]) / 400
    assert found.standard_error == pytest.approx(sqrt(average / 100 + spreads[1] / 300))


def test_it_is_tightest_where_it_is_told_to_be() -> None:
    rng = np.random.default_rng(2)
    arm, other = one_each(list(rng.normal(size=2000))), one_each(list(rng.normal(size=2000)))
    widths = {
        people: difference(arm, other, tightest_at=people).high
        for people in (1000, 2000, 4000, 8000, 16000)
    }
    assert min(widths, key=widths.__getitem__) == 4000


def test_more_interactions_of_the_same_people_are_more_information() -> None:
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(300), 100)
    reward = rng.normal(size=(2, 30000))
    like = np.zeros(30000, dtype=np.bool_)
    few = [ArmTotals.of(person[::100], row[::100], like[::100]) for row in reward]
    many = [ArmTotals.of(person, row, like) for row in reward]

    def in_standard_errors(arms: list[ArmTotals]) -> float:
        found = difference(*arms)
        return (found.high - found.value) / found.standard_error

    # From 600 people's worth, where it is about tightest, to 60 000 people's.
    assert in_standard_errors(many) > 1.1 * in_standard_errors(few)


# --- invariances


@given(arms(8), arms(8), st.randoms(use_true_random=False))
def test_neither_order_nor_names_matter(
    treatment: Rows, control: Rows, random: st.DataObject
) -> None:
    before = difference(totals(treatment), totals(control), burn_in=4)
    names = list(range(10))
    random.shuffle(names)  # type: ignore[attr-defined]
    shuffled = [(names[person] * 7 - 30, reward, like) for person, reward, like in treatment]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    after = difference(totals(shuffled), totals(control), burn_in=4)
    assert interval(after) == pytest.approx(interval(before), rel=1e-9, abs=1e-9)
    assert after.verdict == before.verdict


@given(arms(8), arms(8), eighths)
def test_a_bonus_for_everybody_changes_nothing(
    treatment: Rows, control: Rows, bonus: float
) -> None:
    plain, raised = (
        difference(
            *(
                totals([(person, reward + extra, like) for person, reward, like in rows])
                for rows in (treatment, control)
            ),
            burn_in=4,
        )
        for extra in (0.0, bonus)
    )
    assert interval(raised) == pytest.approx(interval(plain), rel=1e-6, abs=1e-6)


@given(arms(8), arms(8), st.sampled_from([0.25, 2.0, -1.0, -4.0]))
def test_it_scales_with_the_rewards(treatment: Rows, control: Rows, factor: float) -> None:
    plain, scaled = (
        difference(
            *(
                totals([(person, reward * by, like) for person, reward, like in rows])
                for rows in (treatment, control)
            ),
            burn_in=4,
        )
        for by in (1.0, factor)
    )
    ends = sorted([plain.low * factor, plain.high * factor])
    expected = [plain.value * factor, *ends, plain.standard_error * abs(factor)]
    assert interval(scaled) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(arms(0), arms(0))
def test_swapping_the_arms_flips_it(some: Rows, others: Rows) -> None:
    found = difference(totals(some), totals(others), burn_in=4)
    flipped = difference(totals(others), totals(some), burn_in=4)
    assert interval(flipped) == [-found.value, -found.high, -found.low, found.standard_error]
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert flipped.verdict == opposite[found.verdict]


# --- verdicts, burn-in and edges


def test_confirmed_worse() -> None:
    rng = np.random.default_rng(4)
    worse, control = rng.normal(0.0, 1.0, 400), rng.normal(0.5, 1.0, 400)
    found = difference(one_each(list(worse)), one_each(list(control)))
    assert found.high < 0.0 and found.verdict == "worse"


@given(st.integers(0, 99), st.integers(0, 300), st.floats(-100, 100))
def test_below_the_burn_in_nothing_is_decided(few: int, many: int, gap: float) -> None:
    found = difference(one_each([gap] * few), one_each([0.0] * many))
    assert (found.low, found.high, found.started) == (-inf, inf, False)
    assert (found.verdict, found.persons) == ("undecided", few + many)


def test_the_burn_in_is_over_with_the_last_person_it_needs() -> None:
    bad, good = [-1.0, -1.5] * 50, [1.0, 1.5] * 50
    assert difference(one_each(bad), one_each(good)).verdict == "worse"
    assert difference(one_each(bad[:99]), one_each(good)).verdict == "undecided"
    assert difference(one_each(bad[:99]), one_each(good), burn_in=99).verdict == "worse"


def test_empty_arms() -> None:
    empty = totals([])
    assert astuple(empty) == (0,) * 8
    assert (empty.mean_reward, empty.like_rate, empty.reward_spread) == (0.0, 0.0, 0.0)
    assert isinf(empty.variance)
    for pair in ((empty, empty), (empty, one_each([1.0] * 200)), (one_each([1.0] * 200), empty)):
        found = difference(*pair)
        assert (found.low, found.high, found.standard_error) == (-inf, inf, inf)
        assert found.verdict == "undecided"


def test_rewards_that_do_not_vary_are_known_exactly() -> None:
    rows = [(k % 150, 0.3, True) for k in range(1000)]
    other = [(k % 150, 0.1, True) for k in range(1000)]
    assert totals(rows).variance == totals(rows).reward_spread == 0.0
    assert difference(totals(rows), totals(other)).verdict == "better"
    assert difference(totals(rows), totals(rows)).verdict == "undecided"


@given(st.floats(-3, 3), st.lists(st.floats(0.01, 1), min_size=2, max_size=6))
def test_rounding_of_weighted_means_is_no_difference(reward: float, shares: list[float]) -> None:
    """Everybody reacts alike, at several steps of a rollout."""
    totals = []
    for mine in (shares, [1.01 - share for share in shares]):
        weight = np.repeat(1.0 / np.array(mine), 40)
        people = np.arange(len(weight), dtype=np.int64)
        rewards = np.full(len(weight), reward)
        totals.append(ArmTotals.of(people, rewards, np.zeros(len(weight), np.bool_), weight))
    found = difference(*totals, burn_in=30)
    assert found.value == 0.0
    assert found.verdict == "undecided"


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"tightest_at": 0.0},
        {"tightest_at": inf},
        {"burn_in": 1},
    ],
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha must be"):
        difference(one_each([1.0]), one_each([1.0]), **settings)  # type: ignore[arg-type]


def test_columns_must_fit_and_be_finite() -> None:
    person, like = np.array([1, 2]), np.array([True, False])
    with pytest.raises(ValueError, match="one length"):
        ArmTotals.of(person, np.array([1.0]), like)
    with pytest.raises(ValueError, match="one length"):
        ArmTotals.of(person, np.array([1.0, 2.0]), like[:1])
    with pytest.raises(ValueError, match="one length"):
        ArmTotals.of(person, np.array([1.0, 2.0]), like, np.array([1.0]))
    with pytest.raises(ValueError, match="finite"):
        ArmTotals.of(person, np.array([1.0, np.nan]), like)
    for weight in (0.0, -1.0, inf, np.nan):
        with pytest.raises(ValueError, match="weights above 0"):
            ArmTotals.of(person, np.array([1.0, 2.0]), like, np.array([1.0, weight]))


# --- what happens when it is looked at all the time


class Pool(NamedTuple):
    """People to draw from: person i's rewards in order are reward[first[i] : first[i + 1]]."""

    reward: NDArray[np.float64]
    first: NDArray[np.int64]


def pool(
    *,
    correlation: float,
    mean_count: float,
    shape: float = 0.5,
    sd: float = 0.9,
    busy: float = 0.0,
    people: int = 20000,
) -> Pool:
    """Normal rewards; numbers of interactions 1 + Poisson of gamma, the larger `shape` the lighter.

    Args:
        correlation: of two rewards of one person.
        busy: log of how much more active people are per standard deviation of happiness.
    """
    rng = np.random.default_rng(5)
    happiness = rng.normal(size=people)
    rate = mean_count * rng.gamma(shape, 1 / shape, size=people)
    count = 1 + rng.poisson(rate * np.exp(busy * happiness - busy**2 / 2))
    noise = sqrt(1 - correlation) * rng.normal(size=count.sum())
    reward = sd * (sqrt(correlation) * np.repeat(happiness, count) + noise)
    return Pool(reward, np.r_[0, count.cumsum()])


def simulated_pool(people: int = 6000, weeks: int = 3) -> Pool:
    """Rewards as rl.simulator's people give them to random recommendations."""
    rng = np.random.default_rng(6)
    population = draw_population(rng, people)
    columns = []
    for week in range(weeks):
        at = draw_visits(rng, population, np.arange(people), week * WEEK)
        did = react(rng, population, at, rng.integers(27, size=len(at)))
        reward = rewards(RewardWeights(), did.mask, did.completion_rate, did.mood_change)
        columns.append((at.person, reward.astype(np.float64)))
    person, reward = (np.concatenate(column) for column in zip(*columns, strict=True))
    count = np.bincount(person, minlength=people)
    count = count[count > 0]
    return Pool(reward[np.argsort(person, kind="stable")], np.r_[0, count.cumsum()])


def histories(
    reward: NDArray[np.float64],
    first: NDArray[np.int64],
    experiments: int,
    people: int,
    share: float,
    arrive_by: float,
    effect: float,
    seed: int,
) -> NDArray[np.float64]:
    """ArmTotals of (control, treatment) at each look, (experiments, LOOKS, 2, 8).

    Time is 0 to 1. People of the pool arrive up to `arrive_by` and interact at once, then spread
    over a time of 1, of which the experiment sees what is before its end. Looks are denser at
    first, when each interaction moves the means most.
    """
    sums = np.zeros((experiments, LOOKS, 2, 8))
    times = np.empty(int(np.diff(first).max()))
    _play(sums, times, reward, first, people, share, arrive_by, effect, seed)
    return sums.cumsum(axis=1)


# Plain loops: numba takes seconds to compile expressions of arrays.
@njit
def _play(sums, times, reward, first, people, share, arrive_by, effect, seed):  # type: ignore[no-untyped-def]
    """Adds what is new at each look; `times` has room for one person's."""
    np.random.seed(seed)
    for e in range(sums.shape[0]):
        for _ in range(people):
            who = np.random.randint(len(first) - 1)
            arm = int(np.random.random() < share)
            arrival = np.random.random() * arrive_by
            # Sums of exponential gaps, scaled, are sorted uniform times.
            n, total = first[who + 1] - first[who], 0.0
            for k in range(n):
                total += np.random.exponential(1.0)
                times[k] = total
            start, end = times[0], total + np.random.exponential(1.0)
            y = c = 0.0
            for k in range(n):
                time = arrival + (times[k] - start) / (end - start)
                if time >= 1.0:
                    break
                r = reward[first[who] + k] + effect * arm
                look = int(sqrt(time) * sums.shape[1])
                sums[e, look, arm, 0] += k == 0
                sums[e, look, arm, 1] += 1.0
                sums[e, look, arm, 3] += r
                sums[e, look, arm, 4] += r * r
                sums[e, look, arm, 5] += (2.0 * y + r) * r
                sums[e, look, arm, 6] += y + r * (c + 1.0)
                sums[e, look, arm, 7] += 2.0 * c + 1.0
                y += r
                c += 1.0


class Shares(NamedTuple):
    """Shares of experiments that ever found treatment better or worse, and ever |z| > 1.96."""

    better: float
    worse: float
    naive: float


def arm_totals(row: list[float]) -> ArmTotals:
    persons, interactions, likes, *sums = row
    return ArmTotals(int(persons), int(interactions), likes, *sums)


def apart(run: NDArray[np.float64]) -> NDArray[np.bool_]:
    """By look, whether means are 1.9 standard errors apart: only there can anything be found.

    Works all looks of an experiment out at once; where it says so, `difference` decides.
    """
    persons, interactions, _, reward, _, squares, cross, counts = np.moveaxis(run, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = reward / interactions
        spread = squares - mean * (2.0 * cross - mean * counts)
        variance = spread * persons / (persons - 1) / interactions**2
        error = np.sqrt(variance.sum(axis=1))
    # Where it cannot be worked out, it is to be looked at.
    return ~(abs(mean[:, 1] - mean[:, 0]) < 1.9 * error)


POOLS = {
    "heavy tails": lambda: pool(correlation=0.3, mean_count=8.0),
    "the happy are busier": lambda: pool(correlation=0.3, mean_count=10.0, shape=0.3, busy=1.0),
    "independent rewards": lambda: pool(correlation=0.0, mean_count=40.0, shape=3.0),
    "geometric numbers": lambda: pool(correlation=0.2, mean_count=10.0, shape=1.0),
    "simulator": simulated_pool,
}


@cache
def watch(
    people: str,
    *,
    n: int,
    share: float,
    arrive_by: float = 1.0,
    effect: float = 0.0,
    experiments: int = 1000,
) -> Shares:
    """Looks at experiments all the time and acts on the first verdict."""
    reward, first = POOLS[people]()
    runs = histories(reward, first, experiments, n, share, arrive_by, effect, 7)
    found = np.zeros((experiments, 3), dtype=np.bool_)
    for run, of_run in zip(runs, found, strict=True):
        for control, treatment in run[apart(run)].tolist():
            arms = arm_totals(treatment), arm_totals(control)
            now = difference(*arms)
            plain_error = sqrt(arms[0].variance + arms[1].variance)
            of_run[2] |= now.started and abs(now.value) > 1.96 * plain_error
            if now.verdict != "undecided":
                # Who crosses the boundary of the sequence has crossed the narrower one.
                of_run[:] = now.verdict == "better", now.verdict == "worse", True
                break
    shares = Shares(*found.mean(axis=0).tolist())
    print(f"{people}, {n} people, {share:.0%}, {effect}: {shares}")
    return shares


@pytest.mark.parametrize(
    ("people", "n", "share", "arrive_by"),
    [
        ("heavy tails", 1200, 0.5, 1.0),
        ("heavy tails", 2500, 0.1, 1.0),
        ("heavy tails", 1000, 0.5, 0.1),
        ("heavy tails", 2000, 0.1, 0.1),
        ("the happy are busier", 3000, 0.1, 1.0),
        ("independent rewards", 1000, 0.5, 0.0),
        ("simulator", 1000, 0.5, 1.0),
        ("simulator", 2000, 0.1, 0.3),
    ],
)
def test_false_positives(people: str, n: int, share: float, arrive_by: float) -> None:
    found = watch(people, n=n, share=share, arrive_by=arrive_by)
    assert found.better + found.worse <= 0.05


def test_an_interval_for_one_look_errs_when_looked_at_all_the_time() -> None:
    assert watch("heavy tails", n=1200, share=0.5, arrive_by=1.0).naive >= 0.15


def test_power() -> None:
    found = watch("geometric numbers", n=4000, share=0.5, effect=0.1, experiments=300)
    assert found.better >= 0.9
    assert found.worse <= 0.01
