"""Comparison of two arms by a confidence sequence, which may be looked at at any time.

People are randomised to an arm, arrive over time and then react for weeks. So the unit is the
person, and an arm is known by sums over its people: Y, a person's total reward so far, and C, their
number of interactions so far. The interval is an asymptotic confidence sequence: it holds at all
times together, so the first look that leaves 0 outside decides, however many looks there were.

The boundary is Robbins' normal mixture with an estimated variance (Waudby-Smith, Arbour, Sinha,
Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence sequences", Annals of
Statistics 2024; arXiv:2103.06476), made more careful in two ways for people who keep interacting.
Without them, up to 8 % of simulated experiments found a difference where there was none.

- Time is information, not people. The same people tell more and more too; counted in people, the
  boundary would stand still meanwhile, and a boundary that stands still is crossed in the end.
- People of an arm count as no less spread than those of both arms do on average. A small arm has
  not met its few busiest people yet; without them its mean is off and its spread too small.
"""

from dataclasses import dataclass
from math import inf, log, log1p, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["better", "worse", "undecided"]

ALPHA = 0.05
"""Probability, by default, that a confidence sequence ever misses the true difference."""

BURN_IN = 100
"""People in each arm, by default, before a confidence sequence begins."""


@dataclass(frozen=True)
class ArmTotals:
    """Sums over the people of one arm; weights are scaled to a mean of 1.

    Attributes:
        persons, interactions, likes: people, sum of C, and interactions that were liked.
        reward, reward_squares: sum over interactions of the reward and of its square.
        person_*: sum over people of Y^2, Y C and C^2.
    """

    persons: int
    interactions: int
    likes: float
    reward: float
    reward_squares: float
    person_reward_squares: float
    person_reward_interactions: float
    person_interaction_squares: float

    @staticmethod
    def of(
        person: NDArray[np.int64],
        reward: NDArray[np.floating[Any]],
        like: NDArray[np.bool_],
        weight: NDArray[np.floating[Any]] | None = None,
    ) -> "ArmTotals":
        """Sums up n interactions of one arm, in any order.

        Args:
            person, reward, like: person of each interaction, its reward, finite, and True if it
                was liked, each (n,).
            weight: weight of each interaction, above 0, (n,); only ratios matter. None: all equal.

        Raises:
            ValueError: if lengths differ, a reward is not finite or a weight not above 0.
        """
        weight = np.ones(person.size) if weight is None else weight.astype(np.float64)
        if not person.shape == reward.shape == like.shape == weight.shape == (person.size,):
            raise ValueError("person, reward, like and weight must be columns of one length")
        if not (np.isfinite(reward).all() and np.isfinite(weight).all() and (weight > 0).all()):
            raise ValueError("rewards must be finite numbers, and weights above 0")
        reward = reward.astype(np.float64)
        weight = weight * (person.size / max(float(weight.sum()), 1e-300))
        people, index = np.unique(person, return_inverse=True)
        y = np.bincount(index, weights=weight * reward, minlength=len(people))
        c = np.bincount(index, weights=weight, minlength=len(people))
        return ArmTotals(
            persons=len(people),
            interactions=len(reward),
            likes=float(weight @ like),
            reward=float(weight @ reward),
            reward_squares=float(weight @ reward**2),
            person_reward_squares=float(y @ y),
            person_reward_interactions=float(y @ c),
            person_interaction_squares=float(c @ c),
        )

    @property
    def mean_reward(self) -> float:
        """Sum of Y / sum of C: reward per interaction; 0 for an empty arm."""
        return self.reward / max(self.interactions, 1)

    @property
    def like_rate(self) -> float:
        """Share of interactions that were liked, 0 to 1; 0 for an empty arm."""
        return self.likes / max(self.interactions, 1)

    @property
    def variance(self) -> float:
        """Squared standard error of mean_reward; infinite for fewer than two people.

        Linearised, for any dependence within people:
        sum of (Y - mean_reward C)^2 * persons / (persons - 1) / (sum of C)^2.
        """
        if self.persons < 2:
            return inf
        mean, squares = self.mean_reward, self.person_reward_squares
        cross = 2.0 * self.person_reward_interactions - mean * self.person_interaction_squares
        spread = _unless_rounding(squares - mean * cross, squares)
        return spread * self.persons / (self.persons - 1) / self.interactions**2

    @property
    def reward_spread(self) -> float:
        """Sum over interactions of (reward - mean_reward)^2."""
        squares = self.reward_squares
        return _unless_rounding(squares - self.reward * self.mean_reward, squares)


@dataclass(frozen=True)
class Difference:
    """Mean reward per interaction of the treatment minus that of the control.

    Attributes:
        value: the difference, in units of reward.
        low, high: its confidence sequence; -inf and inf before the burn-in is over.
        standard_error: of value, 0 or more; infinite while an arm has fewer than two people.
        persons: people in both arms.
        started: True if the burn-in is over.
    """

    value: float
    low: float
    high: float
    standard_error: float
    persons: int
    started: bool

    @property
    def verdict(self) -> Verdict:
        """Verdict on the treatment; the first that is not "undecided" may be acted on at once."""
        if self.low > 0.0:
            return "better"
        return "worse" if self.high < 0.0 else "undecided"


def difference(
    treatment: ArmTotals,
    control: ArmTotals,
    *,
    alpha: float = ALPHA,
    tightest_at: float = 1000,
    burn_in: int = BURN_IN,
) -> Difference:
    """Compares two arms of different people. Settings must not depend on the data.

    Args:
        treatment, control: the arms so far.
        alpha: probability that the interval ever misses the true difference, above 0, below 1.
        tightest_at: people at whom it is tightest, above 0, if evenly split at one interaction
            each; more interactions count for more, an uneven split for less.
        burn_in: least number of people in each arm, 2 or more.

    Raises:
        ValueError: if a setting is out of range.
    """
    if not (0.0 < alpha < 1.0 and 0.0 < tightest_at < inf and burn_in >= 2):
        raise ValueError("alpha must be from 0 to 1, tightest_at above 0 and burn_in at least 2")
    means = treatment.mean_reward, control.mean_reward
    value = means[0] - means[1]
    if abs(value) <= 1e-12 * max(map(abs, means)):
        # Rounding of weighted means: where rewards do not vary it would be a verdict.
        value = 0.0
    error = _standard_error(treatment, control)
    started = min(treatment.persons, control.persons) >= burn_in
    half_width = 0.0 if started else inf
    if started and error > 0.0:
        spread = treatment.reward_spread + control.reward_spread
        people = 4.0 * spread / (treatment.interactions + control.interactions) / error**2
        rho_squared = (log1p(-2.0 * log(alpha)) - 2.0 * log(alpha)) / tightest_at
        half_width = error * boundary(people * rho_squared, alpha)
    persons = treatment.persons + control.persons
    return Difference(value, value - half_width, value + half_width, error, persons, started)


def boundary(m: float, alpha: float) -> float:
    """Returns the half-width in standard errors, sqrt(2 (m + 1) / m * log(sqrt(m + 1) / alpha)).

    m, 0 (infinite width) or more, is information times rho^2, which tunes the mixture; alpha is
    above 0 and below 1.
    """
    return sqrt((m + 1.0) / m * (log1p(m) - 2.0 * log(alpha))) if m > 0.0 else inf


def _standard_error(treatment: ArmTotals, control: ArmTotals) -> float:
    """Returns that of the difference; no arm counts as less spread than both do on average."""
    arms = (treatment, control)
    if min(arm.persons for arm in arms) < 2:
        return inf
    average = sum(arm.persons**2 * arm.variance for arm in arms) / sum(arm.persons for arm in arms)
    return sqrt(sum(max(arm.variance, average / arm.persons) for arm in arms))


def _unless_rounding(rest: float, squares: float) -> float:
    """Returns the rest of a sum of squares after a subtraction, 0 if it may be rounding error."""
    return rest if rest > 1e-12 * squares else 0.0
