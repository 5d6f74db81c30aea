"""Engines, which do the work of a run: this process and its threads; Ray is in ray_engine.py.

All call the same functions on the same cells, so that the table is the same bit for bit.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.comparison import Log
from recparams_rl.learners.base import Learner
from recparams_rl.learners.registry import LEARNERS
from recparams_rl.transitions import Due, Transitions
from recparams_server.jobs.training.holdout import held_out, holdout_log, split_time
from recparams_server.jobs.training.on_disk import OnDisk
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.reading import Columns, Reading, due_transitions, read
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.database import Connection


@dataclass(frozen=True)
class Work(Due):
    """Summary of what is due in a run.

    Attributes:
        transitions: their number.
        average_reward: of the transitions; 0 without any.
        log: the interactions held out at first, which may be none.
        ids: of the interactions in the log, int64 (n,).
    """

    transitions: int
    average_reward: float
    log: Log
    ids: NDArray[np.int64]


class Engine(ABC):
    """Reads and learns the interactions of a run."""

    @abstractmethod
    async def prepare(self, work: Connection, reading: Reading, progress: Progress) -> Work:
        """Reads the interactions, through the stages "reading" and "preparing"."""

    @abstractmethod
    async def learn(
        self, learner: Learner, *, tail: bool, on_progress: Callable[[float], None]
    ) -> None:
        """Trains a learner on the part that was held out, or on the rest.

        Args:
            learner: the learner.
            tail: True for the part that was held out.
            on_progress: called, from any thread, with the share that was just learned, 0 to 1.
        """

    @abstractmethod
    async def close(self) -> None:
        """Releases what is held."""


class OneProcess(Engine):
    """Engine that uses this process and threads of its own, and the disk where rows are many."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._on_disk: OnDisk | None = None
        self._transitions: Transitions | None = None
        self._tail = np.empty(0, dtype=np.bool_)

    async def prepare(self, work: Connection, reading: Reading, progress: Progress) -> Work:
        settings = self._settings
        with progress.during("reading"):
            expected = await training.expected_rows(
                work, reading.request.rebuild, reading.through, reading.window_start
            )

            def on_rows(count: int) -> None:
                progress.fraction = count / max(1, expected)

            on_disk = self._on_disk = OnDisk(settings, reading)
            in_parts = LEARNERS[reading.request.algorithm].learns_in_parts
            columns = await read(
                work,
                settings,
                reading,
                on_rows,
                most=on_disk.most if in_parts else None,
                on_full=on_disk.add,
            )

        with progress.during("preparing"):
            if on_disk:
                return await asyncio.to_thread(self._prepare_on_disk, on_disk, columns)
            batch = await asyncio.to_thread(
                due_transitions, columns.interactions, reading.request, settings.space().n_contexts
            )
            time = columns.interactions.time[batch.rows]
            self._tail = held_out(time, split_time(time, settings.holdout_share))
            self._transitions = batch.transitions
            reward = batch.transitions.reward
            return Work(
                transitions=len(reward),
                average_reward=float(reward.mean(dtype=np.float64)) if len(reward) else 0.0,
                **batch.due(),
                log=holdout_log(columns, batch.rows[self._tail]),
                ids=columns.interactions.id[batch.rows[self._tail]],
            )

    def _prepare_on_disk(self, on_disk: OnDisk, rest: Columns) -> Work:
        if len(rest.pscore):
            on_disk.add(rest)
        del rest
        found = on_disk.prepare()
        transitions = len(found.log) + on_disk.rest
        return Work(
            transitions=transitions,
            average_reward=found.reward_sum / max(1, transitions),
            **found.due.due(),
            log=found.log,
            ids=found.ids,
        )

    async def learn(
        self, learner: Learner, *, tail: bool, on_progress: Callable[[float], None]
    ) -> None:
        await asyncio.to_thread(self._learn, learner, tail, on_progress)

    def _learn(self, learner: Learner, tail: bool, on_progress: Callable[[float], None]) -> None:
        for part, total in self._parts(tail):

            def learned(count: int, total: int = total) -> None:
                on_progress(count / total)

            learner.learn(part, threads=self._settings.training_threads, on_progress=learned)

    def _parts(self, tail: bool) -> Iterator[tuple[Transitions, int]]:
        """Yields transitions in the order of learning, and the number of all of them."""
        if self._transitions is not None:
            part = self._transitions[self._tail if tail else ~self._tail]
            yield part, len(part)
        elif self._on_disk is not None:
            for part in self._on_disk.parts(tail=tail):
                yield part, len(part) if tail else self._on_disk.rest

    async def close(self) -> None:
        self._transitions = None
        if self._on_disk is not None:
            self._on_disk.close()
