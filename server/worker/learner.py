"""The table that a run learns on, and what is published from it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rl import q_learning
from rl.action import N_ACTIONS
from rl.policy import Policy, publish
from rl.state import StateSpace
from rl.transitions import Transitions
from server.config import Settings
from server.database import Connection
from server.store import models
from server.training_request import RunRequest
from server.worker.progress import Progress


@dataclass(frozen=True)
class Table:
    """What is learned on, in place: float32 and int32, (n_states, n_actions)."""

    q: NDArray[np.float32]
    visits: NDArray[np.int32]


async def parent_table(work: Connection, parent: int | None, space: StateSpace) -> Table:
    """The table of the version to go on from, or an empty one. Raises as `models.load_table`."""
    if parent is not None:
        stored = await models.load_table(work, parent, space)
        return Table(stored.q, stored.visits)
    shape = space.n_states, N_ACTIONS
    return Table(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32))


@dataclass(frozen=True)
class Learner:
    """Learns transitions into a table, and publishes what it holds.

    Attributes:
        settings, request: how to learn.
        table: what to learn on, in place.
        progress: told how much of the transitions is learned.
    """

    settings: Settings
    request: RunRequest
    table: Table
    progress: Progress

    def __call__(self, transitions: Transitions) -> None:
        """Learns transitions that are sorted by cell."""

        def learned(count: int) -> None:
            self.progress.fraction += count / len(transitions)

        q_learning.train(
            self.table.q,
            self.table.visits,
            transitions,
            self.request.hyperparameters,
            states_per_cell=self.settings.space().n_contexts,
            threads=self.settings.training_threads,
            on_progress=learned,
        )

    def publish(self) -> Policy:
        """The table's policy. Raises ValueError where a Q-value is not finite."""
        q, visits = self.table.q, self.table.visits
        if not np.isfinite(q[visits > 0]).all():
            raise ValueError("a Q-value is not finite: lower learning_rate or the rewards")
        hyperparameters = self.request.hyperparameters
        return publish(
            self.settings.space(),
            q,
            visits,
            learning_rate=hyperparameters.learning_rate,
            epsilon=hyperparameters.epsilon(int(visits.sum(dtype=np.int64))),
            smoothing=self.settings.smoothing(),
        )
