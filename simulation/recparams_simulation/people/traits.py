"""Big Five scores, distributed as in a real sample.

Means, standard deviations and correlations are those of 2 800 adults who answered a 25-item
inventory (the `bfi` data of Revelle's R package psych, rescaled to 0-100). Scores are clipped to
the scale rather than redrawn: people do give the extreme answer throughout, and clipping moves the
moments least.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TRAIT_MEANS = np.array([71.7, 65.3, 62.9, 73.0, 43.2])
TRAIT_SDS = np.array([16.2, 19.0, 21.2, 18.0, 23.9])
TRAIT_CORRELATIONS = np.array(
    [
        [1.00, 0.20, 0.21, 0.15, -0.09],
        [0.20, 1.00, 0.26, 0.26, -0.23],
        [0.21, 0.26, 1.00, 0.46, -0.22],
        [0.15, 0.26, 0.46, 1.00, -0.19],
        [-0.09, -0.23, -0.22, -0.19, 1.00],
    ]
)


def draw_traits(rng: np.random.Generator, n: int) -> Floats:
    """Draws the scores of n people, 0 to 100, float64 (n, 5)."""
    covariance = TRAIT_CORRELATIONS * np.outer(TRAIT_SDS, TRAIT_SDS)
    return np.clip(rng.multivariate_normal(TRAIT_MEANS, covariance, size=n), 0.0, 100.0)


def standardise(traits: Floats) -> Floats:
    """Returns scores, shape (n, 5), in standard deviations from the sample's means."""
    standard: Floats = (traits - TRAIT_MEANS) / TRAIT_SDS
    return standard
