"""Overlap of a log with a policy, below which no estimate of its value is given.

Under a behaviour policy that does not explore every pscore is 1, and any estimator gives a number
for any other policy, with a narrow interval around it. Such numbers are refused.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.people import Floats, Parts, effective_size, error_of_sums

LEAST_PSCORE = 1e-3
"""Least propensity that estimates rest on, where no less is explored: one round of 12,000 at 1e-30,
as nobody who serves ever gives, would carry all the weight."""

LEAST_USEFUL_PSCORE = 1e-5
"""The same however little is explored: below it one round is worth 100,000."""

SUPPORT_CONFIDENCE = 0.99
"""Of the interval of the mean weight: a policy is rarely called unsupported by chance."""


@dataclass(frozen=True)
class Coverage:
    """The importance weights of a policy on some rounds, summed up by person.

    Attributes:
        rounds: number of each person's rounds, float64 (people,); those with none do not count.
        weight: sum of each person's weights, float64 (people,).
        squares: sum of the squares of all weights.
        largest: the largest weight; 0 of none.
    """

    rounds: Floats
    weight: Floats
    squares: float
    largest: float

    @property
    def n(self) -> int:
        """Number of rounds."""
        return int(self.rounds.sum())

    @property
    def people(self) -> int:
        """Number of people with a round."""
        return int(np.count_nonzero(self.rounds))

    @property
    def mean(self) -> float:
        """Mean weight; 0 of none."""
        return float(self.weight.sum()) / max(self.n, 1)

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2 over rounds."""
        return float(self.weight.sum()) ** 2 / self.squares if self.squares else 0.0


def coverages(weight: Floats, parts: Parts) -> list[Coverage]:
    """Returns how the weights of a policy, (n,), cover each part of a log."""
    largest = np.zeros(parts.n_parts)
    np.maximum.at(largest, parts.part, weight)
    squares = np.bincount(parts.part, np.square(weight), minlength=parts.n_parts)
    columns = zip(parts.sums(), parts.sums(weight), squares, largest, strict=True)
    return [Coverage(n, sums, float(square), float(top)) for n, sums, square, top in columns]


@dataclass(frozen=True)
class Overlap:
    """Least overlap of a log with a policy for its value to be estimated.

    Args:
        least_effective_sample_size: in rounds, above 0. 50: below it one round is 2 % of the value.
        least_clusters: in people, and in effective people, at least 2. 20: below it cluster-robust
            intervals are too narrow (Cameron, Gelbach & Miller 2008).
        least_mean_weight: share of the policy's actions that were tried, 0 to 1.

    Raises:
        ValueError: if a value is out of range.
    """

    least_effective_sample_size: float = 50.0
    least_clusters: int = 20
    least_mean_weight: float = 0.95

    def __post_init__(self) -> None:
        if not (
            self.least_effective_sample_size > 0
            and self.least_clusters >= 2
            and 0 <= self.least_mean_weight <= 1
        ):
            raise ValueError(f"out of range: {self}")

    def refusal(self, covered: Coverage) -> str:
        """Returns a sentence that says why a policy cannot be estimated; empty if it can."""
        people = covered.people
        if people < self.least_clusters:
            return f"the log is of {people} people, fewer than {self.least_clusters}"
        # With full support the mean weight is 1 in expectation; it is the share that was tried.
        tried = covered.mean
        z = NormalDist().inv_cdf((1.0 + SUPPORT_CONFIDENCE) / 2.0)
        error = error_of_sums(covered.weight - tried * covered.rounds, people, covered.n)
        if tried + z * error < self.least_mean_weight:
            return f"about {100 * (1 - tried):.0f} % of what this policy would do was never tried"
        size, least = covered.effective_sample_size, self.least_effective_sample_size
        if size < least:
            return f"the log is worth about {int(size)} rounds of it, fewer than {least:g}"
        # Not only rounds: where one person carries the weight, SNIPW sees no spread of people.
        size = effective_size(covered.weight)
        if size < self.least_clusters:
            return f"the log is worth about {int(size)} people, fewer than {self.least_clusters}"
        return ""

    def difference_refusal(self, a: Floats, b: Floats, whole: Parts) -> str:
        """Returns a sentence that says why policies of weights a and b cannot be told apart, or "".

        Each may have many rounds and yet hardly any where they differ. A paired interval would
        then be narrow because what is rare has not been seen.
        """
        for which, surplus in (("first", a - b), ("second", b - a)):
            size = effective_size(whole.sums(np.maximum(surplus, 0.0)))
            if size < self.least_clusters:
                return (
                    f"what only the {which} policy would do was given to about {int(size)} people, "
                    f"fewer than {self.least_clusters}"
                )
        return ""


OVERLAP = Overlap()


def least_pscore(epsilon: float) -> float:
    """Returns the least propensity that estimates rest on: half of epsilon / 27, within bounds.

    Args:
        epsilon: least probability of a random action that is served, 0 to 1; 0 is none.
    """
    if epsilon == 0.0:
        return LEAST_PSCORE
    return min(max(epsilon / N_ACTIONS / 2.0, LEAST_USEFUL_PSCORE), LEAST_PSCORE)


def bounded_pscore(pscore: NDArray[np.float32], least: float) -> NDArray[np.float32]:
    """Returns propensities, float32 (n,), with those below a bound as NaN: as if not known.

    Leaving such rounds out biases an estimate by little, since all actions below the bound together
    are taken with a probability of at most 27 times it; one of them can make it worthless.

    Args:
        pscore: float32 (n,), NaN where not known.
        least: the bound.
    """
    return np.where(pscore >= least, pscore, np.float32(np.nan))
