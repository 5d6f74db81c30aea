"""Bayesian linear regression of the reward from sufficient statistics.

The mean reward of action a in a state with features x is x . (w + w_energy + w_diversity +
w_novelty), each of the last three chosen by the level that a has: 27 actions share 10 coefficient
vectors, so that what is learned of one is known of all that are like it. All that the regression
needs of n interactions are the sums, by action and context, of u u' and r u (u the terms of
recparams_rl/learners/features.py), the sum of r^2 and the count. They add up, so batches may come
in any number and order, and give the same but for the last bits.

Bishop, "Pattern Recognition and Machine Learning" (2006), section 3.3: with a prior of N(0, I s^2 /
ridge) on the coefficients, s^2 the variance of rewards around their mean, the posterior is
N(mean, s^2 inverse) with inverse = (sum of f f' + ridge I)^-1 and mean = inverse (sum of r f).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import LEVEL_ONE_HOTS, N_ACTIONS
from recparams_rl.compiled import Compiled
from recparams_rl.learners.base import Learner, OnProgress, Statistics, checked
from recparams_rl.learners.features import N_TERMS, Floats, expansion, n_features
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.state import StateSpace
from recparams_rl.transitions import Transitions

BLOCKS: Floats = np.hstack([np.ones((N_ACTIONS, 1)), LEVEL_ONE_HOTS])
"""Coefficient vectors that each action adds up, float64 (27, 10) of 0 and 1."""

_CHUNK = 1 << 18


@dataclass(frozen=True)
class LinearHyperparameters(Hyperparameters):
    """Hyperparameters of the regression.

    Args:
        ridge: weight of the prior, a coefficient of 0, in interactions, above 0.
    """

    ridge: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("ridge", self.ridge, 1e-6, 1e6)


@dataclass(frozen=True)
class Posterior:
    """Posterior of the regression; d = 10 k coefficients, block by block.

    Attributes:
        mean: float64 (d,).
        inverse: float64 (d, d); times `variance` it is the covariance.
        variance: of rewards around their mean.
    """

    mean: Floats
    inverse: Floats
    variance: float


class LinearLearner(Learner):
    """Base of the linear bandits: adds up the sums that the regression needs.

    Bandits: next states are ignored.

    Attributes:
        squares: sums of u u', lower triangle, float64 (27, n_contexts, 11, 11).
        products: sums of r u, float64 (27, n_contexts, 11).
        totals: number of interactions and sum of r^2, float64 (2,).
    """

    needs_traits = True
    hyperparameters: LinearHyperparameters

    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        cells = N_ACTIONS, self.space.n_contexts
        shapes = {
            "squares": (*cells, N_TERMS, N_TERMS),
            "products": (*cells, N_TERMS),
            "totals": (2,),
        }
        given = arrays or {name: np.zeros(shape) for name, shape in shapes.items()}
        found = {name: checked(given, name, np.float64, shape) for name, shape in shapes.items()}
        self.squares, self.products, self.totals = found.values()

    def learn(
        self,
        transitions: Transitions,
        *,
        threads: int = 1,  # noqa: ARG002 - one adds up faster than a database is read
        on_progress: OnProgress | None = None,
    ) -> None:
        traits = transitions.traits
        if traits is None:
            raise ValueError("this algorithm learns from scores: transitions must have traits")
        for first in range(0, len(transitions), _CHUNK):
            rows = slice(first, first + _CHUNK)
            part = transitions[rows]
            context = part.state % np.int32(self.space.n_contexts)
            sums = self.squares, self.products, self.totals
            accumulate(*sums, context, part.action, part.reward, traits[rows])
            if on_progress is not None:
                on_progress(len(part))

    def posterior(self) -> Posterior:
        """Returns the posterior. Raises ValueError if the sums are not finite."""
        if not all(np.isfinite(array).all() for array in self.arrays().values()):
            raise ValueError("a reward is not finite")
        of_context = expansion(self.space)
        stacked = of_context.reshape(-1, of_context.shape[2])
        lower = np.tril(self.squares)
        whole = lower + np.tril(lower, -1).swapaxes(-1, -2)
        blocks, k = BLOCKS.shape[1], stacked.shape[1]
        gram = np.empty((blocks, k, blocks, k))
        for p in range(blocks):
            for q in range(blocks):
                both = (BLOCKS[:, p] * BLOCKS[:, q]) @ whole.reshape(N_ACTIONS, -1)
                expanded = both.reshape(whole.shape[1:]) @ of_context
                gram[p, :, q, :] = stacked.T @ expanded.reshape(stacked.shape)
        d = blocks * k
        inverse = np.linalg.inv(gram.reshape(d, d) + self.hyperparameters.ridge * np.eye(d))
        inverse = (inverse + inverse.T) / 2.0
        moment = (BLOCKS.T @ self.products.reshape(N_ACTIONS, -1)) @ stacked
        mean = inverse @ moment.ravel()
        count, of_squares = self.totals
        # One interaction of variance 1 besides, so that a few alike are not certainty.
        left = max(of_squares - float(moment.ravel() @ mean), 0.0)
        return Posterior(mean, inverse, float((left + 1.0) / (count + 1.0)))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"squares": self.squares, "products": self.products, "totals": self.totals}

    def statistics(self) -> Statistics:
        return Statistics(total_updates=int(self.totals[0]))


@Compiled
def accumulate(
    squares: Floats,
    products: Floats,
    totals: Floats,
    context: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.float32],
    traits: NDArray[np.float32],
) -> None:
    """Adds n interactions to the sums of `LinearLearner`, in place.

    Args:
        squares, products, totals: the sums.
        context: int32 (n,), 0 to n_contexts - 1.
        action: uint8 (n,), 0 to 26.
        reward: float32 (n,).
        traits: scores 0 to 100, float32 (n, 5).
    """
    n_traits = traits.shape[1]
    u = np.ones(1 + 2 * n_traits)
    for i in range(len(context)):
        r = np.float64(reward[i])
        for t in range(n_traits):
            score = np.float64(traits[i, t]) / 50.0 - 1.0
            u[1 + t] = score
            u[1 + n_traits + t] = score * score
        square, product = squares[action[i], context[i]], products[action[i], context[i]]
        for p in range(len(u)):
            product[p] += r * u[p]
            for q in range(p + 1):
                square[p, q] += u[p] * u[q]
        totals[0] += 1.0
        totals[1] += r * r


def by_action(coefficients: Floats) -> Floats:
    """Returns the actions' coefficients from those of the blocks, (..., d) -> (..., 27, k)."""
    blocks = coefficients.reshape(*coefficients.shape[:-1], BLOCKS.shape[1], -1)
    summed: Floats = np.einsum("ab,...bk->...ak", BLOCKS, blocks)
    return summed


def check_columns(
    space: StateSpace, name: str, array: NDArray[Any], shape: tuple[int, ...]
) -> None:
    """Raises ValueError unless an array is finite float32 of this shape and k for the last axis."""
    wanted = (*shape, n_features(space))
    if array.shape != wanted or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite float32 {wanted}")
