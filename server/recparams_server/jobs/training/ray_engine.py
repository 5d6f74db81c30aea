"""The engine of a Ray cluster: a task of its own reads and learns the cells of each shard.

Ray (extra `ray`) schedules the tasks, keeps their results, and repeats those of a lost worker.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np

from recparams_rl.learners.base import Learner
from recparams_server.jobs.training import exports
from recparams_server.jobs.training.engine import Engine, Work
from recparams_server.jobs.training.holdout import held_out, split_time
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.reading import Reading
from recparams_server.jobs.training.shards import (
    Counts,
    Part,
    Shard,
    interactions_by_cell,
    learn_block,
    merge_shards,
    read_shard,
    shard_rows,
    split_cells,
    write_shard_rows,
)
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.database import Connection, database_url

RETRIES = 5
"""Of a task whose worker died."""


class RayEngine(Engine):
    """Engine that distributes the cells over a Ray cluster.

    Args:
        settings: of the run; `ray_address` says where the cluster is.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._url = database_url(settings)
        self._environment = settings.to_environment(self._url)
        self._snapshot: Connection | None = None
        self._shards: list[Shard] = []
        self._parts: list[Any] = []
        self._split: int | None = None
        self._ray: Any = None

    async def prepare(self, work: Connection, reading: Reading, progress: Progress) -> Work:
        self._ray = await asyncio.to_thread(_connected, self._settings)
        self._reading = reading
        with progress.during("reading"):
            if reading.request.export_folder:
                found = self._from_files(reading)
            else:
                found = await self._from_database(work, reading)
            self._parts = [part for part, _ in found]
            counts: list[Counts] = await _gathered(
                [count for _, count in found],
                lambda: progress.advance(1 / len(found)),
            )

        with progress.during("preparing"):
            times = np.concatenate([one.time for one in counts])
            self._split = split_time(times, self._settings.holdout_share)
            task = self._task(_held_out)
            tails = await _gathered([task.remote(part, self._split) for part in self._parts])
            return merge_shards(counts, [log for log, _ in tails], [ids for _, ids in tails])

    def _task(self, function: Callable[..., Any], num_returns: int = 1) -> Any:
        return self._ray.remote(function).options(num_returns=num_returns, max_retries=RETRIES)

    async def _from_database(self, work: Connection, reading: Reading) -> list[Any]:
        settings, space = self._settings, self._settings.space()
        weights = await interactions_by_cell(work, space, reading)
        wanted = settings.ray_shards or int(self._ray.cluster_resources().get("CPU", 1))
        self._shards = split_cells(weights, space.n_cells, wanted)
        # All workers see the database as it is now, also those that begin again later.
        self._snapshot = await asyncpg.connect(self._url)
        name = await training.export_snapshot(self._snapshot)
        task = self._task(_read_part, 2)
        return [task.remote(self._environment, reading, shard, name) for shard in self._shards]

    def _from_files(self, reading: Reading) -> list[Any]:
        folder = Path(reading.request.export_folder)
        self._shards = list(exports.load(folder).shards)
        task = self._task(_read_file, 2)
        return [
            task.remote(self._environment, reading, shard, str(exports.file_of(folder, position)))
            for position, shard in enumerate(self._shards)
        ]

    async def learn(
        self, learner: Learner, *, tail: bool, on_progress: Callable[[float], None]
    ) -> None:
        space, arrays = self._settings.space(), learner.arrays()
        task = self._task(_learn_block)
        learned = await _gathered(
            [
                task.remote(
                    self._environment,
                    self._reading,
                    shard,
                    part,
                    self._split,
                    tail,
                    self._ray.put(shard_rows(space, arrays, shard)),
                )
                for shard, part in zip(self._shards, self._parts, strict=True)
            ],
            lambda: on_progress(1 / len(self._shards)),
        )
        for shard, block in zip(self._shards, learned, strict=True):
            write_shard_rows(space, arrays, shard, block)

    async def close(self) -> None:
        self._parts = []
        if self._snapshot is not None:
            self._snapshot.terminate()
        if self._ray is not None:
            await asyncio.to_thread(self._ray.shutdown)


def _connected(settings: Settings) -> Any:
    """Returns Ray, connected to the cluster, or to one of its own on this machine."""
    import ray

    # A cluster on this machine only is nobody else's to reach.
    if settings.ray_address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(
        address=settings.ray_address or "local",
        include_dashboard=False if settings.ray_address is None else None,
        logging_level=logging.WARNING,
        log_to_driver=False,
        configure_logging=False,
    )
    return ray


async def _gathered(refs: list[Any], on_done: Callable[[], None] = lambda: None) -> list[Any]:
    """Returns the results of tasks, in order."""

    async def one(ref: Any) -> Any:
        found = await asyncio.wrap_future(ref.future())
        on_done()
        return found

    return list(await asyncio.gather(*map(one, refs)))


def _settings_of(environment: dict[str, str]) -> Settings:
    os.environ.update(environment)
    return Settings()


def _read_part(
    environment: dict[str, str], reading: Reading, shard: Shard, snapshot: str
) -> tuple[Part, Counts]:
    return asyncio.run(_read(_settings_of(environment), reading, shard, snapshot))


async def _read(
    settings: Settings, reading: Reading, shard: Shard, snapshot: str
) -> tuple[Part, Counts]:
    """Reads a shard from the database as it was when the snapshot was taken."""
    connection = await asyncpg.connect(database_url(settings))
    try:
        await training.import_snapshot(connection, snapshot)
        return await read_shard(connection, settings, reading, shard)
    finally:
        connection.terminate()


def _read_file(
    environment: dict[str, str], reading: Reading, shard: Shard, file: str
) -> tuple[Part, Counts]:
    return exports.read_file(_settings_of(environment), reading, shard, Path(file))


def _held_out(part: Part, split: int | None) -> Any:
    rows = held_out(part.time, split)
    return part.log[rows], part.ids[rows]


def _learn_block(
    environment: dict[str, str],
    reading: Reading,
    shard: Shard,
    part: Part,
    split: int | None,
    tail: bool,
    block: dict[str, Any],
) -> dict[str, Any]:
    return learn_block(_settings_of(environment), reading, shard, part, split, tail, block)
