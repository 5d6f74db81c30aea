"""One training run: read what is due, learn it, and commit it with everything that says so.

The new version, everybody's watermark, the run's row and the activation are written in one
transaction that also checks that the run is still wanted. A trainer that dies anywhere before has
changed nothing.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import numpy as np
import structlog

from rl import q_learning
from rl.action import N_ACTIONS
from rl.policy import publish
from rl.reward import rewards
from rl.transitions import Batch, Interactions, prepare
from server.config import Settings
from server.database import Connection, database_url
from server.store import models, tasks, training
from server.store.columns import Collector, Rows, StateEncoder, copy_rows
from server.training_request import RunRequest

log = structlog.get_logger()
REPORT_SECONDS = 0.2
_COLUMNS = {
    "id": np.int64,
    "user": np.int64,
    "time": np.int64,
    "state": np.int32,
    "action": np.uint8,
    "reward": np.float32,
}
POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
# Where each stage ends on the way from 0 to 1.
_STAGES = {
    "starting": 0.02,
    "reading": 0.5,
    "preparing": 0.6,
    "updating": 0.75,
    "smoothing": 0.85,
    "writing": 1.0,
}


class NotWantedError(Exception):
    """The run was cancelled, or ended by somebody else who took this trainer for dead."""


@dataclass
class Progress:
    """How far a run is; read by the reporter, written by the stages."""

    stage: str = "starting"
    fraction: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Names a stage and times it."""
        started = time.perf_counter()
        self.stage, self.fraction = stage, 0.0
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 4)

    @property
    def overall(self) -> float:
        """Share of the whole run that is done, 0 to 1."""
        before = 0.0
        for stage, end in _STAGES.items():
            if stage == self.stage:
                return before + min(1.0, self.fraction) * (end - before)
            before = end
        return before


async def train(settings: Settings, run_id: int) -> int:
    """Carries out a pending run; returns the exit code of the process: 0 unless it failed."""
    url = database_url(settings)
    options = {"client_connection_check_interval": "1000", "application_name": "recparams-trainer"}
    control = await asyncpg.connect(url, server_settings=options)
    work = await asyncpg.connect(url, server_settings=options)
    try:
        await control.execute("SET lock_timeout = '30s'")
        await control.execute("SELECT pg_advisory_lock($1)", tasks.TRAINER_LOCK)
        request = await training.begin(control, run_id)
        if request is None:
            log.warning("run is not pending", run_id=run_id)
            return 0
        progress = Progress()
        job = _run(work, settings, run_id, RunRequest.from_dict(request), progress)
        await _supervise(job, control, run_id, progress)
        return 0
    except NotWantedError:
        await tasks.end(control, run_id, "cancelled", "")
        return 0
    except Exception as failure:
        log.error("training failed", run_id=run_id, exc_info=failure)
        await tasks.end(control, run_id, "failed", f"{type(failure).__name__}: {failure}")
        return 1
    finally:
        work.terminate()
        await control.close()


async def _supervise(
    work: Coroutine[Any, Any, None], control: Connection, run_id: int, progress: Progress
) -> None:
    """Does the work, writes its progress to the run's row, and stops it when it is cancelled."""

    async def report_until_unwanted() -> None:
        while await training.report(control, run_id, progress.stage, progress.overall):
            await asyncio.sleep(REPORT_SECONDS)

    working = asyncio.create_task(work)
    reporting = asyncio.create_task(report_until_unwanted())
    await asyncio.wait({working, reporting}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        reporting.cancel()
        await asyncio.wait({reporting})
        return working.result()
    working.cancel()
    await asyncio.wait({working})
    reporting.result()
    raise NotWantedError


async def _run(
    work: Connection, settings: Settings, run_id: int, request: RunRequest, progress: Progress
) -> None:
    space = settings.space()
    hyperparameters = request.hyperparameters
    with progress.during("starting"):
        window_start = await _window_start(work, settings, request)
        through = await training.snapshot(work)
        await training.fill_in_profiles(work)
        parent = None if request.rebuild else await training.base_version(work)

    with progress.during("reading"):
        interactions = await _read(work, settings, request, window_start, through, progress)

    with progress.during("preparing"):
        batch = await asyncio.to_thread(
            prepare,
            interactions,
            n_contexts=space.n_contexts,
            session_gap=_microseconds(hyperparameters.session_gap_seconds),
            settled_before=_instant(request.as_of) - _microseconds(hyperparameters.settling),
            min_interactions=request.min_interactions_per_user,
        )
        del interactions

    with progress.during("updating"):
        if parent is None:
            q = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
            visits = np.zeros((space.n_states, N_ACTIONS), dtype=np.int32)
        else:
            table = await models.load_table(work, parent, space)
            q, visits = table.q, table.visits

        def learned(count: int) -> None:
            progress.fraction += count / len(batch.transitions)

        await asyncio.to_thread(
            q_learning.train,
            q,
            visits,
            batch.transitions,
            hyperparameters,
            states_per_cell=space.n_contexts,
            threads=settings.training_threads,
            on_progress=learned,
        )

    statistics = q_learning.statistics(q, visits)
    epsilon = hyperparameters.epsilon(statistics.total_updates)
    metrics = {**asdict(statistics), "exploration_rate": epsilon}
    nothing_new = len(batch.transitions) == 0
    model = None
    if not nothing_new:
        with progress.during("smoothing"):
            if not np.isfinite(q[visits > 0]).all():
                raise ValueError("a Q-value is not finite: lower learning_rate or the rewards")
            policy = await asyncio.to_thread(
                publish,
                space,
                q,
                visits,
                learning_rate=hyperparameters.learning_rate,
                epsilon=epsilon,
                smoothing=settings.smoothing(),
            )
            new = models.NewModel(
                origin="trained",
                run_id=run_id,
                parent_version=parent,
                algorithm="q_learning",
                hyperparameters=hyperparameters.to_dict(),
                metrics=metrics,
                q=q,
                visits=visits,
                policy=policy,
            )
            model = await asyncio.to_thread(models.encode, new)

    with progress.during("writing"):
        result = _result(request, batch, metrics, window_start, parent, progress)
        await _commit(work, run_id, request, batch, model, result)


async def _window_start(work: Connection, settings: Settings, request: RunRequest) -> datetime:
    """Start of the window; without days_back it reaches back to the last completed run's end."""
    if request.days_back is not None:
        return request.as_of - timedelta(days=request.days_back)
    start = request.as_of - timedelta(days=settings.days_back)
    last_end: datetime | None = None if request.rebuild else await tasks.last_window_end(work)
    return start if last_end is None else min(start, last_end)


async def _read(
    work: Connection,
    settings: Settings,
    request: RunRequest,
    window_start: datetime,
    through: int,
    progress: Progress,
) -> Interactions:
    encode = StateEncoder(settings.space())
    weights = settings.reward_weights()
    columns = Collector(**_COLUMNS)
    query = training.REBUILD_QUERY if request.rebuild else training.INCREMENTAL_QUERY
    expected = await training.expected_rows(work, query, through, window_start)

    async def add(rows: Rows) -> None:
        columns.add(
            id=rows["id"],
            user=rows["user"],
            time=rows["time"],
            state=encode(rows),
            action=rows["action"],
            reward=rewards(
                weights,
                rows["reactions"].astype(np.int64),
                rows["completion_rate"],
                rows["mood_change"],
            ),
        )
        progress.fraction = columns.rows / max(1, expected)

    await copy_rows(work, query, through, window_start, on_rows=add)
    return Interactions(**{name: columns.column(name) for name in _COLUMNS})


def _result(
    request: RunRequest,
    batch: Batch,
    metrics: dict[str, Any],
    window_start: datetime,
    parent: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """The `training` part of the run's metadata; the seed's monitoring queries read it."""
    reward = batch.transitions.reward
    return {
        "average_reward": float(reward.mean(dtype=np.float64)) if len(reward) else 0.0,
        "users_trained": len(batch.users),
        "interactions_trained": len(reward),
        "interactions_waiting": batch.waiting,
        "interactions_out_of_vocabulary": batch.out_of_vocabulary,
        "agent_stats": metrics,
        "parent_version": parent,
        "window_start": window_start.isoformat(),
        "window_end": request.as_of.isoformat(),
        "stage_seconds": progress.seconds,
    }


async def _commit(
    work: Connection,
    run_id: int,
    request: RunRequest,
    batch: Batch,
    model: models.EncodedModel | None,
    result: dict[str, Any],
) -> None:
    async with work.transaction():
        if not await training.still_wanted(work, run_id):
            raise NotWantedError
        version = None
        if model is not None:
            version = await models.insert(work, model)
            await training.set_watermarks(work, batch.users, batch.trained_through)
            if request.rebuild:
                await training.lower_watermarks(work, batch.waiting_users, batch.first_waiting - 1)
            if request.activate:
                await models.activate(work, version, f"training run {run_id}")
        await training.complete(
            work, run_id, json.dumps({"training": {**result, "model_version": version}})
        )


def _instant(moment: datetime) -> int:
    return _microseconds((moment - POSTGRES_EPOCH).total_seconds())


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
