"""Sums over each person's rounds, of which estimates and their errors are made."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.numerics import unique_inverse

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A division of n rounds into parts, and of those into people.

    Attributes:
        person: of each round, 0, 1, ... without gaps, int32 (n,).
        part: of each round, 0 to n_parts - 1, int64 (n,).
        n_parts: number of parts, those without rounds included.
    """

    person: NDArray[np.int32]
    part: NDArray[np.int64]
    n_parts: int

    @classmethod
    def whole(cls, cluster: NDArray[np.int64]) -> "Parts":
        """Returns one part of all n rounds; `cluster` is the person of each by any number, (n,)."""
        return cls(unique_inverse(cluster)[1], np.zeros(len(cluster), dtype=np.int64), 1)

    @cached_property
    def people(self) -> int:
        """Number of people in all parts together."""
        return int(self.person.max(initial=-1)) + 1

    @cached_property
    def _place(self) -> NDArray[np.int64]:
        return self.part * self.people + self.person

    def sums(self, column: NDArray[Any] | None = None) -> Floats:
        """Returns the sum of a column, (n,), over each person's rounds in each part.

        Without a column it is the number of rounds.

        Returns:
            float64 (n_parts, people), 0 where a person has no round in a part.
        """
        sums = np.bincount(self._place, column, minlength=self.n_parts * self.people)
        return sums.astype(np.float64, copy=False).reshape(self.n_parts, self.people)


def effective_size(weight: Floats) -> float:
    """Returns the effective sample size of weights (Kish 1965): (sum w)^2 / sum w^2."""
    squares = float(np.square(weight).sum())
    return float(weight.sum()) ** 2 / squares if squares else 0.0


def standard_error(terms: Floats, person: NDArray[np.int32]) -> float:
    """Returns the cluster-robust standard error of a mean (Liang & Zeger 1986).

    Args:
        terms: independent between persons, not within one, shape (n,).
        person: person of each term, 0, 1, ... without gaps, shape (n,); at least two.
    """
    sums = np.bincount(person, terms - terms.mean()).astype(np.float64, copy=False)
    return error_of_sums(sums, len(sums), len(terms))


def error_of_sums(deviations: Floats, people: int, n: int) -> float:
    """Returns the same from the sum of each person's deviations from the mean.

    Args:
        deviations: zeros of those without a term may be among them.
        people: number of people with a term, at least two.
        n: number of terms.
    """
    return sqrt(people / (people - 1) * float(np.square(deviations).sum())) / n
