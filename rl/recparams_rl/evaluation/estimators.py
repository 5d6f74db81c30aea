"""Off-policy estimators: what a target policy would earn, from the log of a behaviour policy.

Plain arrays go in, named as in the Open Bandit Pipeline (Saito et al. 2021): round i has a logged
action, its reward, and its pscore, the probability with which the behaviour policy took it;
action_dist holds the target policy's probabilities of all actions, estimated_rewards a model of
their mean rewards. Every estimator is the mean of a term of each round, or that over the mean
weight, so the delta method and the bootstrap (recparams_rl/evaluation/intervals.py) are written
once. Values are in units of reward.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rounds:
    """n rounds as one target policy sees them, columns of shape (n,).

    Attributes:
        weight: importance weight, action_dist of the logged action / pscore, float64, at least 0.
        reward: float64.
        estimated: estimated reward of the logged action, float64.
        direct: estimated reward of the target policy, the mean over its actions, float64.
        cluster: person of each round, int64.
    """

    weight: Floats
    reward: Floats
    estimated: Floats
    direct: Floats
    cluster: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Rounds":
        return Rounds(
            self.weight[rows],
            self.reward[rows],
            self.estimated[rows],
            self.direct[rows],
            self.cluster[rows],
        )


def rounds(
    reward: NDArray[np.floating[Any]],
    action: NDArray[np.integer[Any]],
    pscore: NDArray[np.floating[Any]],
    action_dist: NDArray[np.floating[Any]],
    estimated_rewards: NDArray[np.floating[Any]],
    cluster: NDArray[np.integer[Any]] | None = None,
) -> Rounds:
    """Reduces the log of n rounds to the columns that the estimators need.

    Args:
        reward: shape (n,), finite.
        action: the logged action, shape (n,), 0 to n_actions - 1.
        pscore: above 0 up to 1, shape (n,); rows without one are left out before.
        action_dist: shape (n, n_actions), rows sum to 1.
        estimated_rewards: shape (n, n_actions), finite, from a model not fit to the same person.
        cluster: person of each round, shape (n,); None: every round is another person's.

    Raises:
        ValueError: if shapes, types or ranges are not as above.
    """
    n, n_actions = reward.size, action_dist.shape[-1] if action_dist.ndim else 0
    cluster = np.arange(n) if cluster is None else cluster
    for name, column, shape, kind in (
        ("reward", reward, (n,), np.floating),
        ("action", action, (n,), np.integer),
        ("pscore", pscore, (n,), np.floating),
        ("action_dist", action_dist, (n, n_actions), np.floating),
        ("estimated_rewards", estimated_rewards, (n, n_actions), np.floating),
        ("cluster", cluster, (n,), np.integer),
    ):
        if column.shape != shape or not np.issubdtype(column.dtype, kind):
            must_be, is_ = f"{kind.__name__} {shape}", f"{column.dtype} {column.shape}"
            raise ValueError(f"{name} must be {must_be}, not {is_}")
    if not (np.isfinite(reward).all() and np.isfinite(estimated_rewards).all()):
        raise ValueError("rewards must be finite numbers")
    if not ((action >= 0) & (action < n_actions)).all():
        raise ValueError(f"actions must be from 0 to {n_actions - 1}")
    if not ((pscore > 0.0) & (pscore <= 1.0)).all():
        raise ValueError("a pscore must be above 0 and at most 1")
    total = action_dist.sum(axis=1, dtype=np.float64)
    if not ((action_dist >= 0.0).all() and (np.abs(total - 1.0) <= 1e-6).all()):
        raise ValueError("rows of action_dist must be probabilities that sum to 1")
    logged = np.arange(n), action
    return Rounds(
        weight=action_dist[logged].astype(np.float64) / pscore,
        reward=reward.astype(np.float64),
        estimated=estimated_rewards[logged].astype(np.float64),
        direct=np.einsum("na,na->n", action_dist, estimated_rewards, dtype=np.float64),
        cluster=cluster.astype(np.int64),
    )


def joined(pieces: Sequence[Rounds]) -> Rounds:
    """Returns the rounds of one or more pieces, one after another."""
    names = [field.name for field in fields(Rounds)]
    return Rounds(*(np.concatenate([getattr(one, name) for one in pieces]) for name in names))


class Estimator(ABC):
    """Estimator of the mean reward of the target policy.

    Attributes:
        name: of the estimator.
        self_normalized: True if the value is the mean of the terms over the mean weight.
    """

    name: str
    self_normalized: ClassVar[bool] = False

    @abstractmethod
    def terms(self, rounds: Rounds) -> Floats:
        """Returns the term of each round, (n,)."""

    def influence(self, rounds: Rounds) -> tuple[float, Floats]:
        """Returns the value, and a column of shape (n,) with that mean and with its standard error.

        A ratio is linearised around it (delta method). Not all weights may be 0.
        """
        terms = self.terms(rounds)
        denominator = rounds.weight if self.self_normalized else np.ones(len(rounds))
        scale = denominator.mean()
        value = float(terms.mean() / scale)
        return value, value + (terms - value * denominator) / scale


def _check_lambda(lambda_: float) -> None:
    if not lambda_ > 0:
        raise ValueError(f"lambda_ must be above 0, not {lambda_}")


@dataclass(frozen=True)
class DirectMethod(Estimator):
    """Mean of the model's estimates (Beygelzimer & Langford 2009).

    Its interval does not contain the error of the model, which can be many times as large.
    """

    name: str = "dm"

    def terms(self, rounds: Rounds) -> Floats:
        return rounds.direct


@dataclass(frozen=True)
class InverseProbabilityWeighting(Estimator):
    """Mean of weight x reward (Horvitz & Thompson 1952); clipping: Bottou et al. 2013.

    Args:
        lambda_: weights above it count as it. Infinite: logged propensities are exact and bounded
            below by epsilon / 27, so clipping would add bias and is not needed.

    Raises:
        ValueError: if lambda_ is not above 0.
    """

    lambda_: float = inf
    name: str = "ipw"

    def __post_init__(self) -> None:
        _check_lambda(self.lambda_)

    def terms(self, rounds: Rounds) -> Floats:
        return np.minimum(rounds.weight, self.lambda_) * rounds.reward


@dataclass(frozen=True)
class SelfNormalizedInverseProbabilityWeighting(Estimator):
    """Mean reward, weighted (Swaminathan & Joachims 2015): biased by O(1/n), often less varied."""

    name: str = "snipw"
    self_normalized: ClassVar[bool] = True

    def terms(self, rounds: Rounds) -> Floats:
        return rounds.weight * rounds.reward


@dataclass(frozen=True)
class DoublyRobust(Estimator):
    """The direct method plus the weighted mean of its errors (Dudik et al. 2011, 2014).

    Unbiased with exact propensities whatever the model; a better model only narrows the interval.

    Args:
        lambda_: as in `InverseProbabilityWeighting`.

    Raises:
        ValueError: if lambda_ is not above 0.
    """

    lambda_: float = inf
    name: str = "dr"

    def __post_init__(self) -> None:
        _check_lambda(self.lambda_)

    def terms(self, rounds: Rounds) -> Floats:
        weight = np.minimum(rounds.weight, self.lambda_)
        return rounds.direct + weight * (rounds.reward - rounds.estimated)


@dataclass(frozen=True)
class SwitchDoublyRobust(Estimator):
    """Doubly robust where weights are at most tau, else direct (Wang, Agarwal & Dudik 2017).

    Args:
        tau: largest weight that is trusted. 600: above 27 / 0.05, the weight at the default floor
            of exploration, so that only logs that explored less are left to the model.

    Raises:
        ValueError: if tau is below 0.
    """

    tau: float = 600.0
    name: str = "switch-dr"

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"tau must be at least 0, not {self.tau}")

    def terms(self, rounds: Rounds) -> Floats:
        weight = np.where(rounds.weight <= self.tau, rounds.weight, 0.0)
        return rounds.direct + weight * (rounds.reward - rounds.estimated)


ESTIMATORS: tuple[Estimator, ...] = (
    DirectMethod(),
    InverseProbabilityWeighting(),
    SelfNormalizedInverseProbabilityWeighting(),
    DoublyRobust(),
    SwitchDoublyRobust(),
)
