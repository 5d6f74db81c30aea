"""A training run: reads what is due, learns it, and commits the new version.

The new version, everybody's watermark, the run's row and the activation are written in one
transaction that also checks that the run is still wanted. A trainer that dies anywhere before has
changed nothing.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import structlog

from recparams_rl.arms import Activation
from recparams_rl.learners.base import Learner
from recparams_rl.policy import Policy
from recparams_rl.transitions import TrainedThrough
from recparams_server.jobs.reports import gate_message, message_json
from recparams_server.jobs.requests import RAY, RunRequest
from recparams_server.jobs.training import exports
from recparams_server.jobs.training.engine import Engine, OneProcess, Work
from recparams_server.jobs.training.holdout import Examination, Holdout, evaluate_holdout, examine
from recparams_server.jobs.training.learner import learner_for
from recparams_server.jobs.training.placement import NOTHING_NEW, STORED, place
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.reading import Reading, window_start_of
from recparams_server.observability import logs, tracing
from recparams_server.settings import Settings
from recparams_server.store import activations, models, tasks, training
from recparams_server.store.database import Connection, database_url
from recparams_server.store.locks import TRAINER_LOCK

log = structlog.get_logger()
_TABLE = "q", "visits", "rewards"
REPORT_SECONDS = 0.2
MOST_AT_ONCE = 2_000_000
"""Interactions up to which a candidate is evaluated while the version is made: it takes memory."""
LOCK_TIMEOUT = "30s"
"""Time for the trainer of a run that has just ended to be gone."""


class NotWantedError(Exception):
    """The run was cancelled, or ended by somebody else who took this trainer for dead."""


async def train(settings: Settings, run_id: int) -> int:
    """Carries out a pending run; returns the exit code of the process: 0 unless it failed."""
    url = database_url(settings)
    options = {"application_name": "recparams-trainer"}
    control = await asyncpg.connect(url, server_settings=options)
    work = await asyncpg.connect(url, server_settings=options)
    try:
        # Not as they connect: poolers refuse it there.
        for connection in (control, work):
            await connection.execute("SET client_connection_check_interval = 1000")
        await control.execute("SELECT set_config('lock_timeout', $1, false)", LOCK_TIMEOUT)
        await control.execute("SELECT pg_advisory_lock($1)", TRAINER_LOCK)
        # The run's row is locked while its results are committed, which may take longer.
        await control.execute("RESET lock_timeout")
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
        await tasks.end(control, run_id, "failed", logs.describe(failure))
        return 1
    finally:
        work.terminate()
        await control.close()


async def _supervise(
    work: Coroutine[Any, Any, None], control: Connection, run_id: int, progress: Progress
) -> None:
    """Does the work, writes its progress to the run's row, and stops it when it is cancelled."""

    async def report_until_unwanted() -> None:
        with tracing.quiet():
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
    with progress.during("starting"):
        if request.export_folder:
            exported = exports.load(Path(request.export_folder))
            await exports.check(work, settings, exported, request.rebuild)
            window_start, through = exported.window_start, exported.through
        else:
            window_start = window_start_of(settings, request)
            through = await training.snapshot(work)
            await training.fill_in_profiles(work)
        parent = None if request.rebuild else await training.base_version(work)
        learner = await learner_for(work, settings, request, parent)
        before = None if parent is None else await models.load_trained(work, parent)
        traits = learner.needs_traits or await models.any_needs_traits(work)

    engine = engine_for(settings, request)
    try:
        todo = await engine.prepare(work, Reading(request, window_start, through, traits), progress)
        current = await activations.current_activation(work)
        candidate = await _learn(engine, learner, todo, settings.training_threads, progress)
    finally:
        await engine.close()

    metrics = {**asdict(learner.statistics()), "exploration_rate": learner.epsilon}
    result = _result(request, todo, metrics, window_start, through, parent, progress)
    model = None
    examination = None
    if todo.transitions:
        evaluating = asyncio.create_task(
            _evaluate(work, settings, request, current, candidate, todo)
        )
        try:
            if todo.transitions > MOST_AT_ONCE:
                with progress.during("evaluating"):
                    await evaluating
            with progress.during("smoothing"):
                publish = learner.publishing(threads=settings.training_threads)
                arrays = learner.arrays()
                q, visits, rewards = map(arrays.pop, _TABLE, (None,) * 3)
                table, policy = await asyncio.gather(
                    asyncio.to_thread(models.compressed_table, q, visits, rewards),
                    asyncio.to_thread(publish),
                )
                new = models.NewModel(
                    origin="trained",
                    run_id=run_id,
                    parent_version=parent,
                    algorithm=learner.algorithm,
                    space=learner.space,
                    hyperparameters=request.hyperparameters.to_dict(),
                    metrics=metrics,
                    q=q,
                    visits=visits,
                    rewards=rewards,
                    policy=policy,
                    objectives=request.objectives.to_dict(),
                    main_line=not request.apart,
                    trained=_trained(parent, before, todo),
                    learner=arrays,
                )
                model = await asyncio.to_thread(models.encode, new, table)
            if todo.transitions <= MOST_AT_ONCE:
                with progress.during("evaluating"):
                    await evaluating
            holdout = evaluating.result()
        finally:
            evaluating.cancel()
        examination = await examine(work, settings, current, request, holdout, result, new)
        result |= {
            "gates": [message_json(gate_message(gate)) for gate in examination.gates],
            "holdout": None if holdout is None else message_json(holdout.to_message()),
        }

    with progress.during("writing"):
        await _commit(
            work, settings, run_id, request, window_start, todo, model, examination, result
        )


def engine_for(settings: Settings, request: RunRequest) -> Engine:
    """Returns the engine that a run asks for."""
    if request.engine == RAY:
        from recparams_server.jobs.training.ray_engine import RayEngine

        return RayEngine(settings)
    return OneProcess(settings)


async def _learn(
    engine: Engine, learner: Learner, todo: Work, threads: int, progress: Progress
) -> Callable[[], Policy] | None:
    """Trains on everything, last on what was held out.

    Returns a function that makes the policy of the rest; None if nothing was held out.
    """
    with progress.during("updating"):
        await engine.learn(learner, tail=False, on_progress=progress.advance)
        if not len(todo.log):
            return None
        make = partial(learner.publishing, todo.log.state, threads=threads)
        candidate = await asyncio.to_thread(make)
    with progress.during("folding_in"):
        await engine.learn(learner, tail=True, on_progress=progress.advance)
    return candidate


async def _evaluate(
    work: Connection,
    settings: Settings,
    request: RunRequest,
    current: Activation,
    candidate: Callable[[], Policy] | None,
    todo: Work,
) -> Holdout | None:
    """Evaluates what `_learn` returns on what was held out."""
    if candidate is None:
        return None
    policy = await asyncio.to_thread(candidate)
    return await evaluate_holdout(
        work, settings, current.settled, request.objectives, policy, todo.log, todo.ids
    )


def _trained(
    parent: int | None, before: TrainedThrough | None, todo: Work
) -> TrainedThrough | None:
    """Returns what the new version is trained on; None if that of its parent is not known."""
    new = TrainedThrough(todo.users, todo.trained_through)
    if parent is None:
        return new
    return None if before is None else before.merged(new)


def _result(
    request: RunRequest,
    todo: Work,
    metrics: dict[str, Any],
    window_start: datetime,
    through: int,
    parent: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Returns the `training` part of the run's metadata; the seed's monitoring queries read it."""
    reads_all_due = training.reads_all_due(window_start, request.rebuild)
    return {
        "average_reward": todo.average_reward,
        "users_trained": len(todo.users),
        "interactions_trained": todo.transitions,
        "interactions_waiting": todo.waiting,
        "interactions_through": through,
        "interactions_read_through": through if reads_all_due else None,
        "interactions_out_of_vocabulary": todo.out_of_vocabulary,
        "agent_stats": metrics,
        "parent_version": parent,
        "window_start": None if reads_all_due else window_start.isoformat(),
        "window_end": request.as_of.isoformat(),
        "stage_seconds": progress.seconds,
        "model_version": None,
    }


async def _commit(
    work: Connection,
    settings: Settings,
    run_id: int,
    request: RunRequest,
    window_start: datetime,
    todo: Work,
    model: models.EncodedModel | None,
    examination: Examination | None,
    result: dict[str, Any],
) -> None:
    placement, version = NOTHING_NEW, None
    async with work.transaction():
        if not await training.still_wanted(work, run_id):
            raise NotWantedError
        # A rebuild that found nothing leaves the version before, and what it was trained on.
        if not request.apart and (model is not None or not request.rebuild):
            waiting = await training.settle(work, todo, window_start, rebuild=request.rebuild)
            result |= {"interactions_waiting": waiting}
        if model is not None and examination is not None:
            version = await models.insert(work, model)
            placement = STORED
            if request.activate and not request.apart:
                placement = await place(work, settings, run_id, version, examination)
        result |= {
            "model_version": version,
            "served_percent": placement.percent,
            "outcome_reason": placement.reason,
        }
        await training.complete(work, run_id, placement.outcome, json.dumps({"training": result}))
    said = log.warning if placement.outcome == "refused" else log.info
    said(
        "training completed",
        run_id=run_id,
        version=version,
        outcome=placement.outcome,
        reason=placement.reason,
    )
