"""Off-policy estimates with confidence intervals, refused where the log does not cover a policy.

Rounds of one person are dependent, so intervals count people (clusters), not rounds. A policy is
estimated only where the log covers it (recparams_rl/evaluation/overlap.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.estimators import Estimator, Floats, Rounds
from recparams_rl.evaluation.overlap import OVERLAP, Overlap, effective_size, standard_error
from recparams_rl.numerics import unique_inverse

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
    return _estimate(estimator, [rounds], confidence, rng, resamples, overlap)


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
    return _estimate(estimator, [a, b], confidence, rng, resamples, overlap)


def _estimate(
    estimator: Estimator,
    policies: Sequence[Rounds],
    confidence: float,
    rng: np.random.Generator | None,
    resamples: int,
    overlap: Overlap,
) -> Estimate:
    """Estimates the value of the first policy, minus that of the second if there is one."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    people, person = unique_inverse(policies[0].cluster)
    reason = _refusal(policies, person, overlap)
    value, intervals = nan, []
    if not reason:
        signs = np.array((1.0, -1.0))[: len(policies)]
        values, terms = zip(*map(estimator.influence, policies), strict=True)
        value = float(signs @ values)
        tail = (1.0 - confidence) / 2.0
        margin = -NormalDist().inv_cdf(tail) * standard_error(signs @ np.stack(terms), person)
        intervals.append(Interval("normal", value - margin, value + margin))
        if rng is not None:
            ratios = [estimator.ratio(policy) for policy in policies]
            drawn = _bootstrap(ratios, person, rng, resamples) @ signs
            low, high = np.quantile(drawn, (tail, 1.0 - tail))
            intervals.append(Interval("bootstrap", float(low), float(high)))
    weights = [policy.weight for policy in policies]
    n = len(person)
    return Estimate(
        name=estimator.name,
        value=value,
        intervals=tuple(intervals),
        n=n,
        clusters=len(people),
        effective_sample_size=min(map(effective_size, weights)),
        largest_weight=max(float(weight.max(initial=0.0)) for weight in weights),
        mean_weight=min(float(weight.sum()) for weight in weights) / max(n, 1),
        reason=reason,
    )


def _refusal(policies: Sequence[Rounds], person: NDArray[np.int32], overlap: Overlap) -> str:
    """Returns a sentence that says why an estimate is refused, or an empty string."""
    reasons = [overlap.refusal(policy.weight, person) for policy in policies]
    if len(policies) == 1:
        return reasons[0]
    for which, reason in zip(("first", "second"), reasons, strict=True):
        if reason:
            return f"the {which} policy: {reason}"
    first, second = policies
    if np.array_equal(first.weight, second.weight) and np.array_equal(first.direct, second.direct):
        return ""
    return overlap.difference_refusal(first.weight, second.weight, person)


def _bootstrap(
    ratios: Sequence[tuple[Floats, Floats]],
    person: NDArray[np.int32],
    rng: np.random.Generator,
    resamples: int,
) -> Floats:
    """Returns values of ratios in samples of whole persons, shape (resamples, len(ratios)).

    Percentile bootstrap (Efron 1979) of clusters (Cameron, Gelbach & Miller 2008). All ratios see
    the same people. Memory is that of a few columns of people.
    """
    sums = np.stack([np.bincount(person, column) for ratio in ratios for column in ratio])
    people = sums.shape[1]
    totals = np.empty((resamples, len(sums)))
    for sample in totals:
        drawn = np.bincount(rng.integers(people, size=people), minlength=people)
        sample[:] = sums @ drawn
    values: Floats = totals[:, 0::2] / totals[:, 1::2]
    return values
