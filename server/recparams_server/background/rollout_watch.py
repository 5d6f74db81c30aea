"""Watches a rollout: follows its arms, moves it on, and takes back a version that is worse."""

import asyncio
import json
import time

import structlog

from recparams.v1 import rollout_pb2 as pb
from recparams.v1.evaluation_pb2 import LearningGain
from recparams_rl.arms import RULE_BASED, Activation
from recparams_rl.evaluation.sample_ratio import MISMATCH
from recparams_rl.state import StateSpace
from recparams_server.background.rollout_steps import decide_move, start_waiting, take_step
from recparams_server.contract.errors import ServiceError
from recparams_server.contract.vocabulary import ARM_NAMES
from recparams_server.jobs.processes import Jobs, run_for
from recparams_server.jobs.reports import message_json
from recparams_server.observability import metrics
from recparams_server.settings import Settings
from recparams_server.store import activations, learning_gain, model_rows, tasks
from recparams_server.store.database import Connection, Pool
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.fallback import nearest_servable
from recparams_server.store.locks import WATCH_LOCK, try_lock

log = structlog.get_logger()
LEAST_REST = 4.0
TASK = "rollout_watch"
PUTS_OFF: tuple[type[Exception], ...] = (ServiceError, RuntimeError, *STORE_ERRORS)
"""Raised by a look that may succeed the next time."""


async def watch_rollouts(settings: Settings, pool: Pool, jobs: Jobs) -> None:
    """Compares the arms again and again, on one replica at a time. Runs until cancelled."""
    while True:
        try:
            async with pool.acquire() as connection:
                await _follow(connection)
                if await try_lock(connection, WATCH_LOCK):
                    await _lead(connection, settings, jobs)
        except PUTS_OFF as failure:
            log.warning("the rollout is not watched for now", error=failure)
        metrics.clear_arm_metrics()
        await asyncio.sleep(settings.watch_seconds)


async def _lead(connection: Connection, settings: Settings, jobs: Jobs) -> None:
    """Compares the arms for as long as this replica holds the lock."""
    while True:
        started = time.monotonic()
        current = await _follow(connection)
        if current.experiment_id is None:
            metrics.clear_arm_metrics()
        else:
            await _compare(connection, settings, jobs, current, current.experiment_id)
            await _measure_gain(connection, settings, jobs)
        await start_waiting(connection, settings)
        # Where many interactions make a look long, looks take up a fifth of the time at most.
        spent = time.monotonic() - started
        await asyncio.sleep(max(settings.watch_seconds, LEAST_REST * spent))


async def _follow(connection: Connection) -> Activation:
    """Updates the metrics that every replica shows; returns the newest activation."""
    metrics.set_rollouts_taken_back(await tasks.count(connection, TASK))
    current = await activations.current_activation(connection)
    metrics.set_rollout(current)
    return current


async def _compare(
    connection: Connection, settings: Settings, jobs: Jobs, current: Activation, experiment_id: int
) -> None:
    # Whoever fills the places of jobs must not keep a bad version from being taken back.
    found = await run_for(
        jobs, pb.GetExperimentResponse, "experiment", str(experiment_id), reserved=True
    )
    metrics.set_arm_metrics(found)
    if found.sample_ratio_p_value < MISMATCH:
        log.warning(
            "sample ratio mismatch",
            experiment_id=experiment_id,
            p_value=found.sample_ratio_p_value,
            people={ARM_NAMES[arm.arm]: arm.step_users for arm in found.arms},
        )
    move = await decide_move(connection, settings, current, found)
    if move.action == "take_back":
        worse = next(d for d in found.differences if d.verdict == pb.VERDICT_WORSE)
        await _take_back(connection, settings.serving_space(), experiment_id, found, worse)
    elif move.action == "advance" and settings.rollout == "auto":
        await take_step(connection, settings, current, move)


async def _measure_gain(connection: Connection, settings: Settings, jobs: Jobs) -> None:
    if await learning_gain.is_due(connection, settings.holdback_look_seconds):
        gain = await run_for(jobs, LearningGain, "gain", reserved=True)
        await learning_gain.put(connection, gain)


async def _take_back(
    connection: Connection,
    space: StateSpace,
    experiment_id: int,
    found: pb.GetExperimentResponse,
    worse: pb.ArmDifference,
) -> None:
    """Rolls back, if it is still this experiment that is under way."""
    arm = ARM_NAMES[worse.other]
    other = "the rules" if arm == RULE_BASED else "the previous version"
    reason = (
        f"version {found.version} is worse than {other}: {worse.difference:+.4f} reward an "
        f"interaction, at most {worse.high:+.4f} with {1 - found.alpha:.0%} confidence"
    )
    async with connection.transaction():
        current = await activations.lock(connection)
        if current.experiment_id != experiment_id:
            return
        before = await activations.fetch_activation(connection, current.rollback_to or 0)
        servable = await nearest_servable(connection, before, space, but=current.id)
        if servable.refused:
            log.error("model refused", version=before.version, error=servable.refused)
        current = await activations.return_to(connection, servable.plan, reason, automatic=True)
        await model_rows.halt(connection, found.version, reason)
        await tasks.note(
            connection,
            TASK,
            f"experiment-{experiment_id}",
            json.dumps({"reason": reason, "experiment": message_json(found)}),
        )
    log.error(
        "rollout taken back", reason=reason, experiment_id=experiment_id, serving=current.version
    )
