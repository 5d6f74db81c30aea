"""Policies that are a small neural network: plain arrays and NumPy, nothing else to serve them.

The seed's network: what is known of a state, 128 and 64 rectified units, a number for each action.
Its input is the five scores as -1 to 1 and a place for each content type, mood and time of day.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.numerics import softmax
from recparams_rl.policy import LEARNED, Arrays, Policy, States, Traits, check_epsilon
from recparams_rl.state import TRAITS, StateSpace, context_one_hots

Floats = NDArray[np.float32]

HIDDEN = 128, 64
LAYERS = len(HIDDEN) + 1


@lru_cache(maxsize=4)
def context_inputs(space: StateSpace) -> Floats:
    """Returns the one-hot inputs of each context, read-only float32 (n_contexts, n_words)."""
    content, mood, time, _ = context_one_hots(space)
    found = np.hstack([content, mood, time]).astype(np.float32)
    found.setflags(write=False)
    return found


def score_inputs(traits: Traits) -> Floats:
    """Returns scores of 0 to 100, (n, 5), scaled to -1 to 1, float32."""
    return np.asarray(traits, dtype=np.float32) / np.float32(50.0) - np.float32(1.0)


def inputs(space: StateSpace, context: NDArray[np.integer[Any]], traits: Traits) -> Floats:
    """Returns a network's input, float32 (n, n_inputs), for contexts (n,) and scores (n, 5)."""
    return np.hstack([score_inputs(traits), context_inputs(space)[context]])


def n_inputs(space: StateSpace) -> int:
    """Returns the number of inputs of a network."""
    return len(TRAITS) + sum(space.context_shape)


def layer_shapes(n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's arrays by name: weights (from, to) and biases (to,)."""
    sizes = n_in, *HIDDEN, n_out
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        shapes[f"weight{layer}"] = sizes[layer], sizes[layer + 1]
        shapes[f"bias{layer}"] = (sizes[layer + 1],)
    return shapes


def new_network(rng: np.random.Generator, n_in: int, n_out: int) -> dict[str, Floats]:
    """Draws weights as He et al., "Delving Deep into Rectifiers", ICCV 2015; biases are 0."""
    return {
        name: (rng.standard_normal(shape) * np.sqrt(2.0 / shape[0])).astype(np.float32)
        if len(shape) == 2
        else np.zeros(shape, dtype=np.float32)
        for name, shape in layer_shapes(n_in, n_out).items()
    }


@dataclass(frozen=True)
class NetworkPolicy(Policy):
    """Base of the policies that are a network with an output for each action.

    Attributes:
        space, epsilon: as in `Policy`.
        network: float32 arrays by name, of the shapes that `layer_shapes` gives.

    Raises:
        ValueError: if an array is missing, has another shape, or is not finite.
    """

    needs_traits: ClassVar[bool] = True
    space: StateSpace
    network: Mapping[str, Floats]
    epsilon: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        for name, shape in layer_shapes(n_inputs(self.space), N_ACTIONS).items():
            array = self.network.get(name)
            if (
                array is None
                or array.shape != shape
                or array.dtype != np.float32
                or not np.isfinite(array).all()
            ):
                raise ValueError(f"{name} must be finite float32 {shape}")

    @cached_property
    def _of_context(self) -> Floats:
        """Contribution of each context to the first layer, float32 (n_contexts, 128)."""
        words = self.network["weight0"][len(TRAITS) :]
        added: Floats = context_inputs(self.space) @ words + self.network["bias0"]
        return added

    def outputs(self, state: States, traits: Traits) -> Floats:
        """Returns the last layer, float32 (n, 27). Arguments as in `action_dist`."""
        net = self.network
        x = score_inputs(traits) @ net["weight0"][: len(TRAITS)]
        x += self._of_context[state % self.space.n_contexts]
        for layer in range(1, LAYERS):
            np.maximum(x, 0.0, out=x)
            x = x @ net[f"weight{layer}"] + net[f"bias{layer}"]
        return x

    @abstractmethod
    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]: ...

    def likeliest(self, state: States, traits: Traits) -> NDArray[np.uint8]:
        best: NDArray[np.uint8] = self.outputs(state, traits).argmax(axis=1).astype(np.uint8)
        return best

    def sources_of(self, state: States) -> NDArray[np.uint8]:
        return np.full(len(state), LEARNED, dtype=np.uint8)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return dict(self.network)

    @classmethod
    def from_arrays(cls, space: StateSpace, epsilon: float, arrays: Arrays) -> Self:
        return cls(space, arrays, epsilon)


@dataclass(frozen=True)
class GreedyNetwork(NetworkPolicy):
    """Takes the action with the highest output, the first of equals, for certain."""

    kind: ClassVar[str] = "greedy_network"

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:
        chosen = np.zeros((len(state), N_ACTIONS))
        chosen[np.arange(len(state)), self.likeliest(state, traits)] = 1.0
        return chosen


@dataclass(frozen=True)
class SoftmaxNetwork(NetworkPolicy):
    """Takes actions with probabilities proportional to the exponentials of the outputs."""

    kind: ClassVar[str] = "softmax_network"

    def action_dist(self, state: States, traits: Traits) -> NDArray[np.float64]:
        return softmax(self.outputs(state, traits).astype(np.float64))
