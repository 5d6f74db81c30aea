"""Estimates with intervals: against slow references, and where they are refused."""

from dataclasses import replace
from math import isnan, nan, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.evaluation.estimators import ESTIMATORS, Estimator, Rounds, rounds
from recparams_rl.evaluation.intervals import RESAMPLES, Estimate, Interval, difference, estimate
from recparams_rl.evaluation.overlap import Overlap

DM, IPW, SNIPW, DR, SWITCH = ESTIMATORS
Z = NormalDist().inv_cdf(0.975)
ANYTHING = Overlap(least_effective_sample_size=1e-9, least_clusters=2, least_mean_weight=0.0)
N_ACTIONS = 4

every = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: one.name)


def by_hand() -> Rounds:
    """Two rounds each of two people; weights 2, 3, 1, 0."""
    return Rounds(
        weight=np.array([2.0, 3.0, 1.0, 0.0]),
        reward=np.array([1.0, 0.0, 2.0, -1.0]),
        estimated=np.array([0.5, -1.0, 1.0, 2.0]),
        direct=np.array([0.5, -0.5, 0.5, 1.0]),
        cluster=np.array([70, 3, 70, 3]),
    )


def explored(seed: int, people: int, *targets: float) -> list[Rounds]:
    """The same log of uniform exploration, five rounds a person, as policies see it.

    Target policy k takes action 0 with probability `targets[k]`, else action 1. People differ.
    """
    rng = np.random.default_rng(seed)
    n = 5 * people
    cluster = np.repeat(np.arange(people), 5)
    action = rng.integers(0, N_ACTIONS, n)
    reward = 1.0 - 0.3 * action + rng.normal(size=people)[cluster] + rng.normal(size=n)
    estimated = np.tile(1.0 - 0.25 * np.arange(N_ACTIONS), (n, 1))
    uniform = np.full(n, 1 / N_ACTIONS)
    return [
        rounds(
            reward,
            action,
            uniform,
            np.tile([first, 1.0 - first, 0.0, 0.0], (n, 1)),
            estimated,
            cluster,
        )
        for first in targets
    ]


def served(agrees: float, n: int = 200) -> Rounds:
    """The log of a policy without exploration, as one that agrees in a share of n rounds sees it.

    Every person has two rounds.
    """
    same = np.arange(n) < round(agrees * n)
    return rounds(
        np.ones(n),
        np.zeros(n, dtype=np.int64),
        np.ones(n),
        np.stack([same, ~same], axis=1).astype(np.float64),
        np.full((n, 2), 0.7),
        np.arange(n) % (n // 2),
    )


def normal(found: Estimate) -> Interval:
    interval = found.intervals[0]
    assert interval.method == "normal"
    return interval


def standard_error(found: Estimate) -> float:
    return (normal(found).high - normal(found).low) / (2 * Z)


def assert_refused(found: Estimate, reason: str) -> None:
    assert isnan(found.value)
    assert found.intervals == ()
    assert found.reason == reason


def test_by_hand() -> None:
    """Terms of IPW are 2, 0, 2, 0, so people lie 2 above and 2 below: sqrt(2 * (4 + 4)) / 4."""
    found = estimate(IPW, by_hand(), overlap=ANYTHING)
    assert found == Estimate(
        name="ipw",
        value=1.0,
        intervals=(Interval("normal", pytest.approx(1.0 - Z), pytest.approx(1.0 + Z)),),
        n=4,
        clusters=2,
        effective_sample_size=pytest.approx(36 / 14),
        largest_weight=3.0,
        mean_weight=1.5,
        reason="",
    )


def test_the_bootstrap_by_hand() -> None:
    """Of two people one draws the first twice, both, or the second twice: 4 / 3, 4 / 6, 0 / 3."""
    found = estimate(SNIPW, by_hand(), rng=np.random.default_rng(0), overlap=ANYTHING)
    assert found.intervals[1] == Interval("bootstrap", 0.0, pytest.approx(4 / 3))
    half = estimate(
        SNIPW, by_hand(), rng=np.random.default_rng(0), confidence=0.4, overlap=ANYTHING
    )
    assert half.intervals[1] == Interval("bootstrap", pytest.approx(2 / 3), pytest.approx(2 / 3))


@every
def test_the_bootstrap_equals_drawing_people_and_estimating_anew(estimator: Estimator) -> None:
    a, b = explored(1, 40, 0.8, 0.3)
    a = replace(a, cluster=a.cluster // 2 * 7)[3:]
    b = replace(b, cluster=b.cluster // 2 * 7)[3:]
    people = np.unique(a.cluster)
    rng = np.random.default_rng(5)
    of_a, apart = [], []
    for _ in range(60):
        drawn = people[rng.integers(len(people), size=len(people))]
        rows = np.concatenate([np.flatnonzero(a.cluster == person) for person in drawn])
        of_a.append(estimator.influence(a[rows])[0])
        apart.append(of_a[-1] - estimator.influence(b[rows])[0])

    found = estimate(estimator, a, rng=np.random.default_rng(5), resamples=60, overlap=ANYTHING)
    paired = difference(
        estimator, a, b, rng=np.random.default_rng(5), resamples=60, overlap=ANYTHING
    )
    for interval, values in ((found.intervals[1], of_a), (paired.intervals[1], apart)):
        assert interval.method == "bootstrap"
        low, high = np.quantile(values, [0.025, 0.975])
        assert (interval.low, interval.high) == pytest.approx((low, high))


@every
def test_equal_generators_give_equal_intervals(estimator: Estimator) -> None:
    (log,) = explored(2, 40, 0.5)
    one, same, other = (
        estimate(estimator, log, rng=np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert one == same
    assert one.intervals[0] == other.intervals[0]
    if estimator is not DM:
        assert one.intervals[1] != other.intervals[1]


@every
def test_the_two_intervals_agree_on_a_large_log(estimator: Estimator) -> None:
    (log,) = explored(3, 2000, 0.5)
    log = replace(log, direct=log.direct + np.random.default_rng(0).normal(size=len(log)))
    found = estimate(estimator, log, rng=np.random.default_rng(0), resamples=4 * RESAMPLES)
    by_normal, by_bootstrap = found.intervals
    width = by_normal.high - by_normal.low
    assert width > 0.0
    assert by_bootstrap.low == pytest.approx(by_normal.low, abs=0.08 * width)
    assert by_bootstrap.high == pytest.approx(by_normal.high, abs=0.08 * width)


@given(st.integers(0, 2**32), st.sampled_from(ESTIMATORS))
def test_with_one_round_a_person_it_is_the_textbooks_error(seed: int, estimator: Estimator) -> None:
    (log,) = explored(seed, 30, 0.5)
    log = replace(log, cluster=np.random.default_rng(seed).permutation(len(log)) - 50)
    terms = estimator.influence(log)[1]
    found = estimate(estimator, log, overlap=ANYTHING)
    assert standard_error(found) == pytest.approx(terms.std(ddof=1) / sqrt(len(log)), abs=1e-12)


@given(st.integers(0, 2**32), st.integers(2, 5), st.sampled_from(ESTIMATORS))
def test_saying_the_same_again_is_no_evidence(seed: int, times: int, estimator: Estimator) -> None:
    """Rounds that a person merely repeats leave the interval as it was."""
    (log,) = explored(seed, 30, 0.5)
    again = log[np.tile(np.arange(len(log)), times)]
    once, repeated = (estimate(estimator, one, overlap=ANYTHING) for one in (log, again))
    assert repeated.value == pytest.approx(once.value)
    assert standard_error(repeated) == pytest.approx(standard_error(once), abs=1e-12)


@every
def test_people_make_the_interval_wider_where_they_differ(estimator: Estimator) -> None:
    (log,) = explored(4, 300, 0.5)
    log = replace(log, direct=log.direct + np.repeat(np.linspace(-1, 1, 300), 5))
    strangers = replace(log, cluster=np.arange(len(log)))
    assert standard_error(estimate(estimator, log)) > 1.1 * standard_error(
        estimate(estimator, strangers)
    )


def test_a_wider_confidence() -> None:
    (log,) = explored(5, 100, 0.5)
    narrow, wide = (normal(estimate(DR, log, confidence=confidence)) for confidence in (0.8, 0.99))
    ratio = NormalDist().inv_cdf(0.995) / NormalDist().inv_cdf(0.9)
    assert wide.high - wide.low == pytest.approx(ratio * (narrow.high - narrow.low))


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, nan])
def test_confidence_out_of_range(confidence: float) -> None:
    a, b = explored(6, 30, 0.5, 0.4)
    with pytest.raises(ValueError, match="confidence"):
        estimate(DR, a, confidence=confidence)
    with pytest.raises(ValueError, match="confidence"):
        difference(DR, a, b, confidence=confidence)


@every
def test_without_exploration_no_other_policy_is_estimated(estimator: Estimator) -> None:
    """Every pscore is 1 and every reward is 1: to a naive estimator nothing could be clearer."""
    found = estimate(estimator, served(agrees=0.6), rng=np.random.default_rng(0))
    assert_refused(found, "about 40 % of what this policy would do was never tried")
    assert found.n == 200
    assert found.clusters == 100
    assert found.mean_weight == pytest.approx(0.6)
    assert found.effective_sample_size == pytest.approx(120.0)
    assert found.largest_weight == 1.0


def test_a_policy_of_which_nothing_was_tried() -> None:
    found = estimate(SNIPW, served(agrees=0.0))
    assert_refused(found, "about 100 % of what this policy would do was never tried")
    assert found.effective_sample_size == 0.0


@every
def test_the_served_policy_itself_can_be_estimated(estimator: Estimator) -> None:
    found = estimate(estimator, served(agrees=1.0))
    assert found.reason == ""
    assert found.value == pytest.approx(0.7 if estimator is DM else 1.0)


def test_a_sliver_that_was_never_tried_is_let_pass() -> None:
    assert estimate(DR, served(agrees=0.99)).reason == ""
    strict = Overlap(least_mean_weight=1.0)
    assert estimate(DR, served(agrees=0.99, n=10_000), overlap=strict).reason == (
        "about 1 % of what this policy would do was never tried"
    )


def test_support_is_only_denied_with_99_percent_confidence() -> None:
    """By hand: upper ends of 0.900 + 2.576 * 0.0201 = 0.952 and 0.895 + 2.576 * 0.0205 = 0.948."""
    assert estimate(DR, served(agrees=0.9)).reason == ""
    assert estimate(DR, served(agrees=0.895)).reason.startswith("about 10 % of what this policy")


def test_what_was_explored_can_be_estimated() -> None:
    (log,) = explored(7, 100, 0.5)
    assert all(estimate(estimator, log).reason == "" for estimator in ESTIMATORS)


def test_too_few_people() -> None:
    (log,) = explored(8, 19, 0.5)
    assert_refused(estimate(DM, log), "the log is of 19 people, fewer than 20")
    assert_refused(estimate(DM, log[:0]), "the log is of 0 people, fewer than 20")
    assert estimate(DM, log[:0]).n == 0
    assert estimate(DM, log, overlap=Overlap(least_clusters=5)).reason == ""


def test_too_few_rounds() -> None:
    """One of eight rounds is ever of use, and weighs 8."""
    n = 200
    weight = np.where(np.arange(n) % 8 == 0, 8.0, 0.0)
    log = Rounds(weight, np.ones(n), np.ones(n), np.ones(n), np.arange(n))
    assert_refused(estimate(IPW, log), "the log is worth about 25 rounds of it, fewer than 50")
    assert estimate(IPW, log, overlap=Overlap(least_effective_sample_size=25.0)).reason == ""


def test_one_person_who_carries_the_weight() -> None:
    """To SNIPW, linearised, that person's mean is the value and nobody is far from it."""
    weight = np.r_[np.full(100, 2.0), np.zeros(100)]
    cluster = np.r_[np.zeros(100, dtype=np.int64), np.arange(1, 101)]
    log = Rounds(weight, np.ones(200), np.ones(200), np.ones(200), cluster)
    assert_refused(estimate(SNIPW, log), "the log is worth about 1 people, fewer than 20")


@pytest.mark.parametrize(
    "wrong",
    [
        {"least_effective_sample_size": 0.0},
        {"least_effective_sample_size": nan},
        {"least_clusters": 1},
        {"least_mean_weight": -0.1},
        {"least_mean_weight": 1.1},
    ],
)
def test_thresholds_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Overlap(**wrong)  # type: ignore[arg-type]


@every
def test_a_difference_is_that_of_the_values(estimator: Estimator) -> None:
    a, b = explored(9, 100, 0.8, 0.2)
    found = difference(estimator, a, b)
    assert found.name == estimator.name
    assert found.value == pytest.approx(estimate(estimator, a).value - estimate(estimator, b).value)
    assert normal(found).low + normal(found).high == pytest.approx(2 * found.value)


@every
def test_a_difference_the_other_way_round(estimator: Estimator) -> None:
    a, b = explored(10, 100, 0.8, 0.2)
    there, back = difference(estimator, a, b), difference(estimator, b, a)
    assert back.value == -there.value
    assert normal(back).low == pytest.approx(-normal(there).high)
    assert normal(back).high == pytest.approx(-normal(there).low)


@pytest.mark.parametrize("estimator", [IPW, SNIPW, DR], ids=lambda one: one.name)
def test_a_paired_interval_is_narrower(estimator: Estimator) -> None:
    """Two policies that mostly agree share the luck of the same people."""
    a, b = explored(11, 400, 0.7, 0.5)
    apart = sqrt(sum(standard_error(estimate(estimator, one)) ** 2 for one in (a, b)))
    assert standard_error(difference(estimator, a, b)) < 0.5 * apart


@every
def test_a_difference_reports_the_worse_overlap(estimator: Estimator) -> None:
    a, b = explored(12, 100, 1.0, 0.5)
    alone = [estimate(estimator, one) for one in (a, b)]
    for found in (difference(estimator, a, b), difference(estimator, b, a)):
        assert found.n == 500
        assert found.clusters == 100
        assert found.effective_sample_size == min(one.effective_sample_size for one in alone)
        assert found.largest_weight == max(one.largest_weight for one in alone)
        assert found.mean_weight == min(one.mean_weight for one in alone)


@every
def test_a_policy_differs_from_itself_by_nothing(estimator: Estimator) -> None:
    (a,) = explored(13, 100, 0.5)
    found = difference(estimator, a, a, rng=np.random.default_rng(0))
    assert found.value == 0.0
    assert found.intervals == (Interval("normal", 0.0, 0.0), Interval("bootstrap", 0.0, 0.0))


@every
def test_a_difference_is_refused_where_either_is(estimator: Estimator) -> None:
    ours, theirs = served(agrees=1.0), served(agrees=0.5)
    why = "about 50 % of what this policy would do was never tried"
    assert_refused(difference(estimator, theirs, ours), f"the first policy: {why}")
    assert_refused(difference(estimator, ours, theirs), f"the second policy: {why}")


@every
def test_a_difference_that_hardly_anybody_met_is_refused(estimator: Estimator) -> None:
    """Either can be estimated. Where they differ, only a few people were given what one would do.

    A paired interval is then narrow, or has no width at all, because the rare has not been seen.
    """
    n = 4000
    weight = np.ones(n)
    log = Rounds(weight, np.ones(n), np.ones(n), np.ones(n), np.arange(n) // 2)
    other = weight.copy()
    other[:100], other[0], other[2] = 0.0, 50.0, 50.0
    alike = replace(log, weight=other)
    assert estimate(estimator, log).reason == estimate(estimator, alike).reason == ""
    assert_refused(
        difference(estimator, alike, log),
        "what only the first policy would do was given to about 2 people, fewer than 20",
    )
    assert_refused(
        difference(estimator, log, alike),
        "what only the second policy would do was given to about 2 people, fewer than 20",
    )
    unseen = replace(log, direct=log.direct + 0.1)
    assert_refused(
        difference(estimator, unseen, log),
        "what only the first policy would do was given to about 0 people, fewer than 20",
    )


def test_a_difference_needs_the_same_rounds() -> None:
    a, b = explored(14, 40, 0.8, 0.2)
    for other in (b[1:], replace(b, reward=-b.reward), replace(b, cluster=b.cluster + 1)):
        with pytest.raises(ValueError, match="same rounds"):
            difference(DR, a, other)
