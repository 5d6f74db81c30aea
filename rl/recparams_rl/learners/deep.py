"""Base of the learners of neural networks: arrays in, PyTorch while learning, arrays out.

PyTorch (the extra `deep`) is needed to learn, and neither to publish nor to serve.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.learners.base import Learner, OnProgress, Statistics, checked
from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.network import (
    LAYERS,
    Floats,
    inputs,
    layer_shapes,
    n_inputs,
    new_network,
)
from recparams_rl.transitions import TERMINAL, Transitions

_MOMENTS = "first_moment", "second_moment"


@dataclass(frozen=True)
class DeepHyperparameters(Hyperparameters):
    """Hyperparameters of fitting a network; `learning_rate` is that of tables and is not used.

    Args:
        step_size: of Adam, above 0 and up to 1.
        batch_size: transitions of a gradient step, 1 to 65536; whole.
        passes: gradient steps of a run as passes over its transitions, above 0.
        least_steps: gradient steps of a run, however few its transitions, 1 or more; whole.
        target_every: steps after which the target network follows, 1 or more; whole.
        gradient_clip: largest norm of a gradient, above 0.
        seed: of the first weights and the order of transitions, 0 or more; whole.
    """

    step_size: float = 1e-3
    batch_size: int = 256
    passes: float = 30.0
    least_steps: int = 300
    target_every: int = 200
    gradient_clip: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("step_size", self.step_size, 1e-9, 1)
        check_range("batch_size", self.batch_size, 1, 1 << 16)
        check_range("passes", self.passes, 1e-3, 1e4)
        check_range("least_steps", self.least_steps, 1, 1e9)
        check_range("target_every", self.target_every, 1, 1e9)
        check_range("gradient_clip", self.gradient_clip, 1e-9, 1e9)
        check_range("seed", self.seed, 0, 1 << 32)
        for name in ("batch_size", "least_steps", "target_every", "seed"):
            if getattr(self, name) != int(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number, not {getattr(self, name)}")


@dataclass(frozen=True)
class Minibatch:
    """Transitions of one gradient step, torch tensors of n rows.

    Attributes:
        x, next_x: inputs, float32 (n, n_inputs).
        action: int64 (n,).
        reward: float32 (n,).
        nonterminal: float32 (n,), 0 if the episode ends, else 1.
    """

    x: Any
    action: Any
    reward: Any
    next_x: Any
    nonterminal: Any


def pytorch() -> Any:
    """Returns the torch module. Raises ImportError, naming the extra, if it is not installed."""
    try:
        import torch
    except ImportError:
        raise ImportError(
            "this algorithm learns with PyTorch, which is not installed: "
            "pip install 'recparams[deep]'"
        ) from None
    return torch


def forward(network: Mapping[str, Any], x: Any) -> Any:
    """Returns the outputs of a network of torch tensors, (n, n_outputs), for x (n, n_inputs)."""
    for layer in range(LAYERS):
        x = (x.relu() if layer else x) @ network[f"weight{layer}"] + network[f"bias{layer}"]
    return x


class DeepLearner(Learner):
    """Fits networks to the transitions of a run, drawn again and again in random order.

    The replay memory is the run's transitions: those of earlier runs live on in the networks and
    the optimiser alone. So two batches do not give what one gives, but the same batches under the
    same seed give the same bits: one thread computes, by deterministic algorithms.

    Attributes:
        state: float32 arrays of networks, target networks and moments of Adam, by name; and
            counts, int64 (2,): gradient steps and transitions.
    """

    needs_traits = True
    learns_in_parts = False
    hyperparameters: DeepHyperparameters
    networks: ClassVar[Mapping[str, int]]
    """Number of outputs of each network that is fitted, by name."""
    targets: ClassVar[tuple[str, ...]]
    """Names of the networks that have a target network, `target_` and the name."""

    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        n_in = n_inputs(self.space)
        given = self._new(n_in) if arrays is None else arrays
        self.counts = checked(given, "counts", np.int64, (2,))
        self.state = {
            (key := f"{prefix}{name}/{part}"): checked(given, key, np.float32, shape)
            for name, outputs in self.networks.items()
            for prefix in self._prefixes(name)
            for part, shape in layer_shapes(n_in, outputs).items()
        }

    def _new(self, n_in: int) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(int(self.hyperparameters.seed))
        arrays: dict[str, NDArray[Any]] = {"counts": np.zeros(2, dtype=np.int64)}
        for name, outputs in self.networks.items():
            for part, array in new_network(rng, n_in, outputs).items():
                for prefix in self._prefixes(name):
                    begin = array if prefix in ("", "target_") else np.zeros_like(array)
                    arrays[f"{prefix}{name}/{part}"] = begin.copy()
        return arrays

    def _prefixes(self, name: str) -> tuple[str, ...]:
        target = ("target_",) if name in self.targets else ()
        return ("", *target, *(f"{moment}/" for moment in _MOMENTS))

    def network(self, name: str) -> dict[str, Floats]:
        """Returns the arrays of a network by name, as in `recparams_rl.learners.network`."""
        prefix = f"{name}/"
        return {
            key.removeprefix(prefix): array
            for key, array in self.state.items()
            if key.startswith(prefix)
        }

    @abstractmethod
    def _loss(self, torch: Any, networks: Mapping[str, Mapping[str, Any]], batch: Minibatch) -> Any:
        """Returns the loss of a minibatch, a scalar tensor."""

    def learn(
        self,
        transitions: Transitions,
        *,
        threads: int = 1,  # noqa: ARG002 - sums of several threads differ in their last bits
        on_progress: OnProgress | None = None,
    ) -> None:
        self._traits(transitions)
        if not len(transitions):
            return
        torch, settings = pytorch(), self.hyperparameters
        size = min(int(settings.batch_size), len(transitions))
        n_steps = max(int(settings.least_steps), round(settings.passes * len(transitions) / size))
        rng = np.random.default_rng([int(settings.seed), int(self.counts[0])])
        order = _minibatches(rng, len(transitions), size)
        reported = 0
        with single_threaded(torch):
            networks = {
                name: {
                    part: torch.tensor(array, requires_grad=not name.startswith("target_"))
                    for part, array in self.network(name).items()
                }
                for name in (*self.networks, *(f"target_{name}" for name in self.targets))
            }
            fitted = [tensor for name in self.networks for tensor in networks[name].values()]
            optimiser = self._optimiser(torch, networks)
            for step in range(n_steps):
                loss = self._loss(torch, networks, self._steps(torch, transitions, next(order)))
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(fitted, settings.gradient_clip)
                optimiser.step()
                self.counts[0] += 1
                if self.counts[0] % int(settings.target_every) == 0:
                    self._update_targets(torch, networks)
                if on_progress is not None:
                    done = len(transitions) * (step + 1) // n_steps
                    on_progress(done - reported)
                    reported = done
            self._store(networks, optimiser)
        self.counts[1] += len(transitions)

    @staticmethod
    def _traits(transitions: Transitions) -> Floats:
        if transitions.traits is None:
            raise ValueError("this algorithm learns from scores: transitions must have traits")
        return transitions.traits

    def _steps(self, torch: Any, transitions: Transitions, rows: NDArray[np.int64]) -> Minibatch:
        drawn = transitions[rows]
        traits = self._traits(drawn)
        n = self.space.n_contexts
        nonterminal = drawn.next_state != TERMINAL
        following = np.where(nonterminal, drawn.next_state, 0)
        return Minibatch(
            x=torch.from_numpy(inputs(self.space, drawn.state % n, traits)),
            action=torch.from_numpy(drawn.action.astype(np.int64)),
            reward=torch.from_numpy(drawn.reward.astype(np.float32)),
            next_x=torch.from_numpy(inputs(self.space, following % n, traits)),
            nonterminal=torch.from_numpy(nonterminal.astype(np.float32)),
        )

    def _optimiser(self, torch: Any, networks: Mapping[str, Mapping[str, Any]]) -> Any:
        """Returns Adam (Kingma & Ba, ICLR 2015) with the moments of the run before."""
        fitted = [tensor for name in self.networks for tensor in networks[name].values()]
        adam = torch.optim.Adam(fitted, lr=self.hyperparameters.step_size)
        for name in self.networks:
            for part, tensor in networks[name].items():
                first, second = (
                    torch.tensor(self.state[f"{moment}/{name}/{part}"]) for moment in _MOMENTS
                )
                adam.state[tensor] = {
                    "step": torch.tensor(float(self.counts[0])),
                    "exp_avg": first,
                    "exp_avg_sq": second,
                }
        return adam

    def _update_targets(self, torch: Any, networks: Mapping[str, Mapping[str, Any]]) -> None:
        with torch.no_grad():
            for name in self.targets:
                for part, tensor in networks[f"target_{name}"].items():
                    tensor.copy_(networks[name][part])

    def _store(self, networks: Mapping[str, Mapping[str, Any]], optimiser: Any) -> None:
        for name, tensors in networks.items():
            for part, tensor in tensors.items():
                self.state[f"{name}/{part}"] = tensor.detach().numpy().copy()
                for moment, key in zip(_MOMENTS, ("exp_avg", "exp_avg_sq"), strict=True):
                    if name in self.networks:
                        found = optimiser.state[tensor][key].numpy().copy()
                        self.state[f"{moment}/{name}/{part}"] = found

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {**self.state, "counts": self.counts}

    def statistics(self) -> Statistics:
        return Statistics(total_updates=int(self.counts[1]))

    def _finite(self, name: str) -> dict[str, Floats]:
        found = self.network(name)
        if not all(np.isfinite(array).all() for array in found.values()):
            raise ValueError("a weight is not finite: lower step_size or the rewards")
        return found


def _minibatches(rng: np.random.Generator, n: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Yields rows of one gradient step after another, without end: epochs in random order."""
    while True:
        order = rng.permutation(n)
        for first in range(0, n - size + 1, size):
            yield order[first : first + size]


@contextmanager
def single_threaded(torch: Any) -> Iterator[None]:
    """Makes PyTorch deterministic within the block, and restores its settings after it."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
