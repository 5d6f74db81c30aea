"""Linear Thompson sampling: each action is as likely as it is to be the best.

Agrawal & Goyal, "Thompson Sampling for Contextual Bandits with Linear Payoffs", ICML 2013, on the
regression of recparams_rl/learners/linear.py. A version holds `draws` samples of the coefficients
from the posterior, and a decision takes the best action under one of them, each as likely. So the
propensity of an action is exactly the share of the samples under which it is the best (the first of
equals): no approximation is left to whoever evaluates the log. The samples are drawn from a
generator seeded by how much was learned, so the same log gives the same version.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.features import by_context, expansion, terms
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.linear import (
    LinearHyperparameters,
    LinearLearner,
    by_action,
    check_columns,
)
from recparams_rl.policy import LEARNED, Arrays, Policy, States, Traits, check_epsilon
from recparams_rl.state import StateSpace


@dataclass(frozen=True)
class LinTsHyperparameters(LinearHyperparameters):
    """Hyperparameters of linear Thompson sampling.

    Args:
        spread: factor on the posterior's standard deviation, 0 (greedy) or more.
        draws: samples a version holds, 1 to 1024; whole.
    """

    spread: float = 1.0
    draws: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("spread", self.spread, 0, 1e3)
        check_range("draws", self.draws, 1, 1024)
        if self.draws != int(self.draws):
            raise ValueError(f"draws must be a whole number, not {self.draws}")


@dataclass(frozen=True)
class SampledLinearPolicy(Policy):
    """Takes the best action under a linear model of the reward drawn from a set of samples.

    Attributes:
        space, epsilon: as in `Policy`.
        samples: coefficients of the features of each action, float32 (n_samples, 27, k).

    Raises:
        ValueError: if the array does not fit the space or is not finite.
    """

    needs_traits: ClassVar[bool] = True
    kind: ClassVar[str] = "sampled_linear"
    space: StateSpace
    samples: NDArray[np.float32]
    epsilon: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_columns(self.space, "samples", self.samples, (len(self.samples), N_ACTIONS))
        if not len(self.samples):
            raise ValueError("there must be at least one sample")

    @cached_property
    def _by_context(self) -> NDArray[np.float32]:
        """Coefficients of the terms in each context, (n_contexts, n_samples * 27, 11)."""
        of_context = expansion(self.space).astype(np.float32)
        flat = self.samples.reshape(-1, self.samples.shape[2])
        return np.ascontiguousarray(flat @ of_context.swapaxes(1, 2))

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:
        n, n_samples = len(state), len(self.samples)
        best = np.empty((n, n_samples), dtype=np.int64)
        u = terms(traits).astype(np.float32)
        for context, rows in by_context(state % self.space.n_contexts):
            values = (u[rows] @ self._by_context[context].T).reshape(-1, n_samples, N_ACTIONS)
            best[rows] = values.argmax(axis=2)
        places = best + N_ACTIONS * np.arange(n)[:, None]
        counts = np.bincount(places.ravel(), minlength=n * N_ACTIONS).reshape(n, N_ACTIONS)
        shares: NDArray[np.float64] = counts / n_samples
        return shares

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.full(len(state), LEARNED, dtype=np.uint8)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"samples": self.samples}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        return cls(space, arrays["samples"], epsilon)


class LinearThompsonSampling(LinearLearner):
    """Linear Thompson sampling; publishes samples of the posterior."""

    algorithm: ClassVar[str] = "lin_ts"
    Settings: ClassVar[type[Hyperparameters]] = LinTsHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (SampledLinearPolicy,)
    hyperparameters: LinTsHyperparameters

    def publish(self) -> Policy:
        found = self.posterior()
        rng = np.random.default_rng(int(self.totals[0]))
        noise = rng.standard_normal((int(self.hyperparameters.draws), len(found.mean)))
        scale = self.hyperparameters.spread * np.sqrt(found.variance)
        samples = found.mean + scale * noise @ np.linalg.cholesky(found.inverse).T
        return SampledLinearPolicy(
            self.serving_space, by_action(samples).astype(np.float32), self.epsilon
        )
