"""Intervals of many paired differences that hold together.

Each is the difference -+ c standard errors, c being a quantile of the largest |t| of all of them
where there is no difference: that of a normal vector with the correlations that the people of the
log show (Hothorn, Bretz & Westfall, "Simultaneous inference in general parametric models",
Biometrical Journal 50, 2008), to which the bootstrap of the maximum of Romano & Wolf (Econometrica
73, 2005) tends. Differences that go together cost less than by Bonferroni's inequality.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DRAWS = 20_000
_SEED = 1


@dataclass(frozen=True)
class Together:
    """Intervals of k differences.

    Attributes:
        errors: standard errors, cluster-robust (Liang & Zeger 1986), (k,).
        critical: half-width of the intervals in standard errors; 0 if k is 0.
        p_values: of no difference, adjusted for all k (Westfall & Young 1993, single-step), (k,).
    """

    errors: Floats
    critical: float
    p_values: Floats


def together(differences: Floats, deviations: Floats, n: int, confidence: float) -> Together:
    """Returns the intervals; the same arguments give the same.

    Args:
        differences: k means over n rows, (k,).
        deviations: sum over each person's rows of what the difference there is above its mean,
            (k, people), of at least two people.
        n: rows.
        confidence: that all intervals hold, above 0 and below 1.
    """
    if not len(differences):
        return Together(np.zeros(0), 0.0, np.zeros(0))
    errors = standard_errors(deviations, n)
    spread = np.maximum(np.linalg.norm(deviations, axis=1), np.finfo(np.float64).tiny)
    scaled = deviations / spread[:, None]
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    drawn = np.random.default_rng(_SEED).standard_normal((DRAWS, len(differences))) @ root.T
    largest = np.abs(drawn).max(axis=1)
    t = np.abs(differences) / np.maximum(errors, np.finfo(np.float64).tiny)
    p_values = np.array([(1 + np.count_nonzero(largest >= one)) / (1 + DRAWS) for one in t])
    return Together(errors, float(np.quantile(largest, confidence)), p_values)


def standard_errors(deviations: Floats, n: int) -> Floats:
    """Returns the standard errors of k means over n rows; arguments as in `together`."""
    people = deviations.shape[-1]
    found: Floats = np.sqrt(people / (people - 1) * np.square(deviations).sum(axis=-1)) / n
    return found
