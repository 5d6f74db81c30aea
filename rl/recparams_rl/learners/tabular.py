"""Base of the tabular algorithms: a table of Q-values that is learned cell by cell."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.choice import sampled_actions
from recparams_rl.compiled import Compiled
from recparams_rl.learners.base import Learner, OnProgress, Statistics, checked
from recparams_rl.policy import GreedyTable, Policy, publish
from recparams_rl.smoothing import Smoothed, Visited, visited_pairs
from recparams_rl.transitions import Transitions


class TabularLearner(Learner):
    """Base that learns tables of shape (n_states, n_actions) in place.

    `q` and `rewards`, of immediate rewards with the same step size, are float32; `visits` is int32.

    A cell's transitions never leave the cell, so cells are dealt out to threads whole and the table
    is the same, bit for bit, for any number of them.
    """

    policy_types: ClassVar[tuple[type[Policy], ...]] = (GreedyTable,)

    def _begin(self, arrays: Mapping[str, NDArray[Any]] | None) -> None:
        shape = self.space.n_states, N_ACTIONS
        if arrays is None:
            self.q = np.zeros(shape, dtype=np.float32)
            self.visits = np.zeros(shape, dtype=np.int32)
            self.rewards = np.zeros(shape, dtype=np.float32)
        else:
            self.q = checked(arrays, "q", np.float32, shape)
            self.visits = checked(arrays, "visits", np.int32, shape)
            self.rewards = checked(arrays, "rewards", np.float32, shape)

    @abstractmethod
    def _update(self, part: Transitions) -> None:
        """Updates the table with the transitions of some cells, in order, in place."""

    def learn(
        self, transitions: Transitions, *, threads: int = 1, on_progress: OnProgress | None = None
    ) -> None:
        learn_by_cell(
            transitions,
            self.space.n_contexts,
            self.learn_in_order,
            threads=threads,
            on_progress=on_progress,
        )

    def learn_in_order(self, part: Transitions) -> None:
        """Learns transitions of any cells one after the other, on this thread."""
        self._update(part)
        learning_rate = np.float32(self.hyperparameters.learning_rate)
        update_rewards(self.rewards, part.state, part.action, part.reward, learning_rate)

    def publish(self) -> Policy:
        return self.publishing()()

    def publishing(
        self, states: NDArray[np.integer[Any]] | None = None, *, threads: int = 1
    ) -> Callable[[], Policy]:
        visited = self._visited()
        return partial(
            publish,
            self.space,
            visited,
            learning_rate=self.hyperparameters.learning_rate,
            epsilon=self.hyperparameters.epsilon(visited.updates),
            smoothing=self.smoothing,
            draw=partial(self._draw, threads=threads),
            states=states,
            threads=threads,
        )

    def _visited(self) -> Visited:
        """Returns what the table holds. Raises ValueError if a value of it is not finite."""
        visited = Visited.of(self.q, self.visits, self.rewards)
        if not np.isfinite(visited.q).all():
            raise ValueError("a Q-value is not finite: lower learning_rate or the rewards")
        return visited

    def _draw(
        self, smoothed: Smoothed, rules: NDArray[np.uint8], *, threads: int
    ) -> NDArray[np.uint8]:
        """Returns draws to explore by, uint8 (n_states, n). Arguments as `sampled_actions`."""
        return sampled_actions(smoothed, rules, threads=threads)

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"q": self.q, "visits": self.visits, "rewards": self.rewards}

    def statistics(self) -> Statistics:
        return table_statistics(self.q, self.visits)

    @property
    def epsilon(self) -> float:
        return self.hyperparameters.epsilon(int(self.visits.sum(dtype=np.int64)))


def learn_by_cell(
    transitions: Transitions,
    states_per_cell: int,
    update: Callable[[Transitions], None],
    *,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> None:
    """Learns transitions that are sorted by cell on several threads, each cell on one of them.

    Args:
        transitions: sorted by (cell, time, id).
        states_per_cell: consecutive states that form one independent cell.
        update: learns transitions in order.
        threads: at least 1.
        on_progress: called from any of the threads with the number of transitions just learned.
    """

    def learn(part: slice) -> None:
        update(transitions[part])
        if on_progress is not None:
            on_progress(part.stop - part.start)

    parts = split_by_cell(transitions.state // states_per_cell, 4 * threads)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for done in [pool.submit(learn, part) for part in parts]:
            done.result()


@Compiled
def update_rewards(
    rewards: NDArray[np.float32],
    state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.float32],
    learning_rate: np.float32,
) -> None:
    """Moves each pair's immediate reward towards every one seen, in order, in float32, in place.

    Args:
        rewards: table, float32 (n_states, n_actions).
        state, action, reward: transitions, shape (m,).
        learning_rate: float32.
    """
    for i in range(state.shape[0]):
        before = rewards[state[i], action[i]]
        rewards[state[i], action[i]] = before + learning_rate * (reward[i] - before)


def split_by_cell(cells: NDArray[np.int32], parts: int) -> list[slice]:
    """Cuts sorted cells, shape (m,), into at most `parts` slices of similar length.

    No cell is cut in two. The slices are not empty, do not overlap and cover everything.
    """
    wanted = np.linspace(0, len(cells), parts + 1)[1:-1].astype(np.int64)
    cuts = np.searchsorted(cells, cells[wanted]) if len(cells) else wanted
    bounds = np.unique(np.r_[0, cuts, len(cells)])
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def table_statistics(q: NDArray[np.float32], visits: NDArray[np.int32]) -> Statistics:
    """Returns statistics of a table; arguments of shape (n_states, n_actions)."""
    at = visited_pairs(visits)
    values, state = q.ravel()[at], at // q.shape[1]
    states = int(np.count_nonzero(np.diff(state))) + 1 if len(at) else 0
    return Statistics(
        total_updates=int(visits.ravel()[at].sum(dtype=np.int64)),
        total_states=states,
        total_state_actions=len(values),
        avg_q_value=float(values.mean(dtype=np.float64)) if len(values) else 0.0,
        max_q_value=float(values.max()) if len(values) else 0.0,
        coverage=states / len(q),
        largest_q=float(np.abs(values).max(initial=0.0)),
    )
