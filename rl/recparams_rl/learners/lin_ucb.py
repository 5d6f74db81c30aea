"""LinUCB: upper confidence bounds on a linear model of the reward.

    argmax_a  f(x, a) . mean + confidence * s * sqrt(f(x, a)' inverse f(x, a))

Li, Chu, Langford & Schapire, "A Contextual-Bandit Approach to Personalized News Article
Recommendation", WWW 2010, on the regression of recparams_rl/learners/linear.py (features shared by
the actions; s, the standard deviation of rewards around their mean, makes `confidence` a number of
standard errors).

Within one version a state has one action, which is taken with certainty: propensities are 1, and
the log of such a version tells nothing about other actions unless the server explores (setting
`exploration`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.features import N_TERMS, by_context, expansion, n_features, terms
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.linear import (
    BLOCKS,
    LinearHyperparameters,
    LinearLearner,
    by_action,
    check_columns,
)
from recparams_rl.policy import LEARNED, Arrays, Policy, States, Traits, check_epsilon
from recparams_rl.state import StateSpace


@dataclass(frozen=True)
class LinUcbHyperparameters(LinearHyperparameters):
    """Hyperparameters of LinUCB.

    Args:
        confidence: standard errors above the mean, 0 (greedy) or more.
    """

    confidence: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("confidence", self.confidence, 0, 1e3)


@dataclass(frozen=True)
class LinearBoundPolicy(Policy):
    """Takes the action with the highest upper confidence bound of a linear model of the reward.

    Attributes:
        space, epsilon: as in `Policy`.
        means: coefficients of the features of each action, float32 (27, k).
        forms: quadratic forms of the features whose roots are the widths, float32 (27, k, k).

    Raises:
        ValueError: if the arrays do not fit the space or are not finite.
    """

    needs_traits: ClassVar[bool] = True
    kind: ClassVar[str] = "linear_bound"
    space: StateSpace
    means: NDArray[np.float32]
    forms: NDArray[np.float32]
    epsilon: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_columns(self.space, "means", self.means, (N_ACTIONS,))
        check_columns(self.space, "forms", self.forms, (N_ACTIONS, self.means.shape[1]))

    @cached_property
    def _by_context(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Coefficients of the terms by context, (n_contexts, 27, 11), and quadratic forms."""
        of_context = expansion(self.space)
        means = of_context @ self.means.T.astype(np.float64)
        forms = of_context[:, None] @ self.forms @ of_context.swapaxes(1, 2)[:, None]
        forms = forms.reshape(len(forms), N_ACTIONS, -1)
        means = np.ascontiguousarray(means.swapaxes(1, 2))
        return means.astype(np.float32), forms.astype(np.float32)

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:
        means, forms = self._by_context
        u = terms(traits).astype(np.float32)
        squares = (u[:, :, None] * u[:, None, :]).reshape(len(u), N_TERMS**2)
        chosen = np.zeros((len(u), N_ACTIONS))
        for context, rows in by_context(state % self.space.n_contexts):
            width = np.sqrt(np.maximum(squares[rows] @ forms[context].T, 0.0))
            chosen[rows, (u[rows] @ means[context].T + width).argmax(axis=1)] = 1.0
        return chosen

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.full(len(state), LEARNED, dtype=np.uint8)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"means": self.means, "forms": self.forms}

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        return cls(space, arrays["means"], arrays["forms"], epsilon)


class LinUcb(LinearLearner):
    """LinUCB; publishes the means and quadratic forms of the bounds."""

    algorithm: ClassVar[str] = "lin_ucb"
    Settings: ClassVar[type[Hyperparameters]] = LinUcbHyperparameters
    policy_types: ClassVar[tuple[type[Policy], ...]] = (LinearBoundPolicy,)
    hyperparameters: LinUcbHyperparameters

    def publish(self) -> Policy:
        found = self.posterior()
        blocks, k = BLOCKS.shape[1], n_features(self.space)
        pairs = (BLOCKS[:, :, None] * BLOCKS[:, None, :]).reshape(N_ACTIONS, -1)
        by_block = found.inverse.reshape(blocks, k, blocks, k).swapaxes(1, 2)
        forms = (pairs @ by_block.reshape(blocks * blocks, -1)).reshape(N_ACTIONS, k, k)
        scale = self.hyperparameters.confidence**2 * found.variance
        return LinearBoundPolicy(
            self.serving_space,
            by_action(found.mean).astype(np.float32),
            (scale * forms).astype(np.float32),
            self.epsilon,
        )
