"""Off-policy estimates with confidence intervals, refused where the log does not cover a policy.

Rounds of one person are dependent, so intervals count people (clusters), not rounds. A policy is
estimated only where the log covers it (recparams_rl/evaluation/overlap.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import NormalDist

import numpy as np

from recparams_rl.evaluation.estimators import Estimator, Floats, Rounds
from recparams_rl.evaluation.overlap import OVERLAP, Coverage, Overlap, coverages
from recparams_rl.evaluation.people import Parts, error_of_sums

RESAMPLES = 400
"""Bootstrap samples: the 2.5 % quantile is then the tenth smallest."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in units of reward; method is "normal" or "bootstrap"."""

    method: str
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Estimate of the value of one policy, or of the difference of two.

    Attributes:
        name: of the estimator.
        value: in units of reward; NaN if it is refused.
        intervals: of the value; none if it is refused.
        n: rounds.
        clusters: people they came from.
        effective_sample_size: (sum w)^2 / sum w^2, 0 to n; the lesser one of two policies.
        largest_weight: the largest importance weight, of both policies.
        mean_weight: 1 in expectation if the log covers the policy; the lesser one of two policies.
        reason: a sentence that says why it is refused; empty if it is not.
    """

    name: str
    value: float
    intervals: tuple[Interval, ...]
    n: int
    clusters: int
    effective_sample_size: float
    largest_weight: float
    mean_weight: float
    reason: str


@dataclass(frozen=True)
class Covered:
    """A log as a policy sees it, with what the log says of the policy in each part.

    Attributes:
        rounds: all rounds of the log.
        parts: its parts.
        overlap: least coverage for an estimate.
        coverages: of the policy by each part.
        reasons: why there is no estimate in each part; empty where there is one.
    """

    rounds: Rounds
    parts: Parts
    overlap: Overlap
    coverages: Sequence[Coverage]
    reasons: Sequence[str]

    @classmethod
    def of(cls, rounds: Rounds, parts: Parts, overlap: Overlap = OVERLAP) -> "Covered":
        """Looks how well each part covers the policy."""
        found = coverages(rounds.weight, parts)
        return cls(rounds, parts, overlap, found, [overlap.refusal(one) for one in found])


def estimate(
    estimator: Estimator,
    rounds: Rounds,
    *,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
    overlap: Overlap = OVERLAP,
) -> Estimate:
    """Estimates the value of a policy.

    Args:
        estimator: the estimator.
        rounds: the log as the policy sees it.
        confidence: of the intervals, above 0 and below 1.
        rng: draws the bootstrap samples; None gives a normal interval alone.
        resamples: bootstrap samples.
        overlap: least coverage of the policy by the log.

    Raises:
        ValueError: if confidence is out of range.
    """
    covered = Covered.of(rounds, Parts.whole(rounds.cluster), overlap)
    (found,) = estimates(estimator, covered, confidence, rng, resamples)
    return found


def estimates(
    estimator: Estimator,
    covered: Covered,
    confidence: float,
    rng: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """Estimates the value of a policy in each part of a log; arguments are as in `estimate`."""
    terms = covered.parts.sums(estimator.terms(covered.rounds))
    return [
        _estimate(estimator, [_Sums(coverage, own)], reason, confidence, rng, resamples)
        for coverage, own, reason in zip(covered.coverages, terms, covered.reasons, strict=True)
    ]


def difference(
    estimator: Estimator,
    a: Rounds,
    b: Rounds,
    *,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
    overlap: Overlap = OVERLAP,
) -> Estimate:
    """Estimates the value of policy a minus that of b on the same log, with a paired interval.

    Terms that the two policies share cancel round by round. The difference is refused if one of
    the two values is, or if too few rounds tell them apart. Arguments are as in `estimate`.

    Raises:
        ValueError: if a and b are not the same rounds, or confidence is out of range.
    """
    if not (np.array_equal(a.reward, b.reward) and np.array_equal(a.cluster, b.cluster)):
        raise ValueError("the two policies must be given the same rounds")
    whole = Parts.whole(a.cluster)
    first, second = (Covered.of(one, whole, overlap) for one in (a, b))
    return difference_of(estimator, first, second, confidence, rng, resamples)


def difference_of(
    estimator: Estimator,
    a: Covered,
    b: Covered,
    confidence: float,
    rng: np.random.Generator | None = None,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Does what `difference` does for policies that are covered by one and the same whole log."""
    sums = [
        _Sums(one.coverages[0], one.parts.sums(estimator.terms(one.rounds))[0]) for one in (a, b)
    ]
    return _estimate(estimator, sums, _difference_refusal(a, b), confidence, rng, resamples)


def _difference_refusal(a: Covered, b: Covered) -> str:
    """Returns a sentence that says why a difference is refused, or an empty string."""
    for which, one in (("first", a), ("second", b)):
        if one.reasons[0]:
            return f"the {which} policy: {one.reasons[0]}"
    first, second = a.rounds, b.rounds
    if np.array_equal(first.weight, second.weight) and np.array_equal(first.direct, second.direct):
        return ""
    return a.overlap.difference_refusal(first.weight, second.weight, a.parts)


@dataclass(frozen=True)
class _Sums:
    """What an estimator makes of a policy, by person: its weights, and the sums of the terms."""

    coverage: Coverage
    terms: Floats

    def denominators(self, estimator: Estimator) -> Floats:
        """Returns what the sum of the terms is divided by, person by person."""
        return self.coverage.weight if estimator.self_normalized else self.coverage.rounds


def _estimate(
    estimator: Estimator,
    policies: Sequence[_Sums],
    reason: str,
    confidence: float,
    rng: np.random.Generator | None,
    resamples: int,
) -> Estimate:
    """Estimates the value of the first policy, minus that of the second if there is one."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    covered = [one.coverage for one in policies]
    n, people = covered[0].n, covered[0].people
    value, intervals = nan, []
    if not reason:
        signs = np.array((1.0, -1.0))[: len(policies)]
        ratios = [(one.terms, one.denominators(estimator)) for one in policies]
        values, deviations = zip(*(_linearised(*ratio, n) for ratio in ratios), strict=True)
        value = float(signs @ values)
        tail = (1.0 - confidence) / 2.0
        error = error_of_sums(signs @ np.stack(deviations), people, n)
        margin = -NormalDist().inv_cdf(tail) * error
        intervals.append(Interval("normal", value - margin, value + margin))
        if rng is not None:
            drawn = _bootstrap(ratios, rng, resamples) @ signs
            low, high = np.quantile(drawn, (tail, 1.0 - tail))
            intervals.append(Interval("bootstrap", float(low), float(high)))
    return Estimate(
        name=estimator.name,
        value=value,
        intervals=tuple(intervals),
        n=n,
        clusters=people,
        effective_sample_size=min(one.effective_sample_size for one in covered),
        largest_weight=max(one.largest for one in covered),
        mean_weight=min(one.mean for one in covered),
        reason=reason,
    )


def _linearised(terms: Floats, denominators: Floats, n: int) -> tuple[float, Floats]:
    """Returns a ratio of sums, and the sum of each person's deviations from it (delta method)."""
    total = denominators.sum()
    value = float(terms.sum() / total)
    return value, (terms - value * denominators) * (n / total)


def _bootstrap(
    ratios: Sequence[tuple[Floats, Floats]], rng: np.random.Generator, resamples: int
) -> Floats:
    """Returns values of ratios in samples of whole persons, shape (resamples, len(ratios)).

    Percentile bootstrap (Efron 1979) of clusters (Cameron, Gelbach & Miller 2008). All ratios see
    the same people.
    """
    sums = np.stack([column for ratio in ratios for column in ratio])
    people = sums.shape[1]
    totals = np.empty((resamples, len(sums)))
    for sample in totals:
        drawn = np.bincount(rng.integers(people, size=people), minlength=people)
        sample[:] = sums @ drawn
    values: Floats = totals[:, 0::2] / totals[:, 1::2]
    return values
