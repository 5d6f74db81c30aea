"""Check of the sample ratio: do the arms have the people that their shares promise?

A mismatch says that assignment or logging is broken, or that the people of an arm stay away, and
that the arms must not be compared (Fabijan et al., "Diagnosing sample ratio mismatch in online
controlled experiments", KDD 2019).
"""

from collections.abc import Sequence
from math import erfc, exp, gamma, sqrt

MISMATCH = 1e-4
"""p-value below which a mismatch is reported: it is looked at often, and costs much attention."""


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns Pearson's statistic of counts against their expected shares, 0 or more.

    Args:
        counts: people of each arm, 0 or more.
        shares: expected shares of the arms, above 0; they sum to 1.

    Raises:
        ValueError: if the lengths differ or a share is not above 0.
    """
    if len(counts) != len(shares) or not all(share > 0 for share in shares):
        raise ValueError("each count needs a share above 0")
    n = sum(counts)
    return sum(
        (count - n * share) ** 2 / (n * share)
        for count, share in zip(counts, shares, strict=True)
        if n
    )


def survival(statistic: float, degrees: int) -> float:
    """Returns the probability that a chi-square variable exceeds a statistic, 0 to 1."""
    half = statistic / 2.0
    # Q(a + 1, x) = Q(a, x) + x^a e^-x / Gamma(a + 1), from Q(1/2, x) or Q(1, x).
    order = 0.5 if degrees % 2 else 1.0
    found = erfc(sqrt(half)) if degrees % 2 else exp(-half)
    while order < degrees / 2.0:
        found += half**order * exp(-half) / gamma(order + 1.0)
        order += 1.0
    return min(found, 1.0)


def sample_ratio_p_value(counts: Sequence[int], shares: Sequence[float]) -> float:
    """Returns the p-value of the chi-square test; 1 for a single arm. Arguments as `chi_square`."""
    statistic = chi_square(counts, shares)
    return survival(statistic, len(counts) - 1) if len(counts) > 1 else 1.0
