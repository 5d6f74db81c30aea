"""Exploration by draws: the actions that are taken, now and then, in place of the greedy one.

A state has a number of draws, each as likely. At least half of them are of the greedy action, so
that no log is worth little for the very policy that made it; the others are kept, one byte each, so
that a decision is a lookup and a propensity a count. They are kept for the cells of learning, which
are fewer than those of serving: how sure a table is differs less from place to place than what it
would do.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.compiled import Compiled
from recparams_rl.state import StateSpace, nearest_cells

N_SAMPLES = 24
"""Draws of a state that are not of the greedy action for certain."""

States = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Draws:
    """Draws of the states of a policy.

    Attributes:
        space: the state space of the draws.
        cells: its cell for each cell of the policy's space, int32 (n_cells,).
        n: draws of a state, 1 to 255.
        counts: one byte a state: its draws of other actions than the greedy one. States are in the
            order of contexts and then cells, in which neighbours are alike and compress well.
        actions: these, one byte each, in the same order.

    Raises:
        ValueError: if they do not fit each other or hold impossible values.
    """

    space: StateSpace
    cells: NDArray[np.int32] = field(compare=False)
    n: int
    counts: bytes
    actions: bytes

    def __post_init__(self) -> None:
        counts = np.frombuffer(self.counts, dtype=np.uint8)
        if len(counts) != self.space.n_states:
            raise ValueError(f"draws are of {len(counts)} states, not {self.space.n_states}")
        if not 1 <= self.n <= 255 or int(counts.max()) > self.n:
            raise ValueError("a state has more draws than there are")
        if len(self.actions) != int(counts.sum(dtype=np.int64)):
            raise ValueError("draws do not have as many actions as they count")
        if np.frombuffer(self.actions, dtype=np.uint8).max(initial=0) >= N_ACTIONS:
            raise ValueError("a draw is of an action that does not exist")
        if int(self.cells.max()) >= self.space.n_cells or int(self.cells.min()) < 0:
            raise ValueError("draws are of cells that do not exist")

    @classmethod
    def of(
        cls, space: StateSpace, serving: StateSpace, drawn: NDArray[np.uint8], greedy: States
    ) -> Self:
        """Makes draws of the actions drawn in each state.

        Args:
            space: the state space of the draws.
            serving: that of the policy, with the same contexts.
            drawn: actions, each as likely, uint8 (n_states, n); as many draws again are of the
                greedy action.
            greedy: the greedy action of each state of `space`, (n_states,).
        """
        counts = np.empty(space.n_states, dtype=np.uint8)
        actions = np.empty(drawn.size, dtype=np.uint8)
        kept = _others(drawn, greedy.astype(np.uint8), space.n_contexts, counts, actions)
        n = 2 * drawn.shape[1]
        return cls(space, _cells(space, serving), n, counts.tobytes(), actions[:kept].tobytes())

    @cached_property
    def starts(self) -> "array[int]":
        """Place of the first action of each state, in the order of `counts`, and the end."""
        # An array of Python's is read faster than one of NumPy's, an element at a time.
        counts = np.frombuffer(self.counts, dtype=np.uint8)
        return array("I", np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32).tobytes())

    def dist(self, state: States, greedy: States) -> NDArray[np.float64]:
        """Returns the share of the draws of n states that each action has, float64 (n, 27).

        Args:
            state: state indices of the policy's space, (n,).
            greedy: the greedy actions there, (n,).
        """
        cell, context = np.divmod(state, self.space.n_contexts)
        own = context.astype(np.int64) * self.space.n_cells + self.cells[cell]
        starts = np.frombuffer(self.starts, dtype=np.uint32)
        start = starts[own].astype(np.int64)
        lengths = starts[own + 1] - start
        row = np.repeat(np.arange(len(start)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        kept = np.frombuffer(self.actions, dtype=np.uint8)[start[row] + within]
        counts = np.bincount(row * N_ACTIONS + kept, minlength=len(start) * N_ACTIONS)
        found = counts.reshape(-1, N_ACTIONS).astype(np.float64)
        found[np.arange(len(found)), greedy] += self.n - lengths
        found /= self.n
        return found

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the arrays, by name, from which `from_arrays` makes these draws again."""
        return {
            "bins": np.array(self.space.bins),
            "n": np.array(self.n),
            "counts": np.frombuffer(self.counts, dtype=np.uint8),
            "actions": np.frombuffer(self.actions, dtype=np.uint8),
        }

    @classmethod
    def from_arrays(cls, serving: StateSpace, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Makes draws for a policy on a space. Raises ValueError or KeyError if they do not fit."""
        space = replace(serving, bins=int(arrays["bins"]), cuts=())
        counts, actions = arrays["counts"].tobytes(), arrays["actions"].tobytes()
        return cls(space, _cells(space, serving), int(arrays["n"]), counts, actions)


@Compiled
def _others(
    drawn: NDArray[np.uint8],
    greedy: NDArray[np.uint8],
    n_contexts: int,
    counts: NDArray[np.uint8],
    actions: NDArray[np.uint8],
) -> int:
    """Finds the draws of other actions than the greedy one, and returns their number.

    Args:
        drawn, greedy: as in `Draws.of`.
        n_contexts: of the state space.
        counts: of each state, in the order of `Draws`, (n_states,), filled.
        actions: as many as there are draws, the first of which are filled, ascending by state.
    """
    often = np.empty(N_ACTIONS, np.int64)
    n_cells = len(drawn) // n_contexts
    kept = 0
    for i in range(len(drawn)):
        state = i % n_cells * n_contexts + i // n_cells
        often[:] = 0
        for m in range(drawn.shape[1]):
            often[drawn[state, m]] += 1
        before = kept
        for action in range(N_ACTIONS):
            if action != greedy[state]:
                for _ in range(often[action]):
                    actions[kept] = action
                    kept += 1
        counts[i] = kept - before
    return kept


def _cells(space: StateSpace, serving: StateSpace) -> NDArray[np.int32]:
    return nearest_cells(space, serving).astype(np.int32)


def rounded(probabilities: NDArray[np.floating[Any]], n: int = N_SAMPLES) -> NDArray[np.uint8]:
    """Returns draws that have actions about as often as probabilities say, uint8 (n_states, n).

    By largest remainders, so that an action is off by less than one draw.

    Args:
        probabilities: of all actions, rows sum to 1, (n_states, 27).
        n: draws of a state.
    """
    wanted = probabilities * n
    counts = np.floor(wanted).astype(np.int64)
    missing = n - counts.sum(axis=1)
    rank = np.argsort(np.argsort(counts - wanted, axis=1, kind="stable"), axis=1, kind="stable")
    counts += rank < missing[:, None]
    actions = np.tile(np.arange(N_ACTIONS, dtype=np.uint8), len(counts))
    return np.repeat(actions, counts.ravel()).reshape(-1, n)
