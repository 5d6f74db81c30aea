"""Watches a rollout: follows the reward of its arms, and takes back a version that is worse."""

import asyncio
import contextlib
import json
import time

import structlog

from recparams.v1 import rollout_pb2 as pb
from rl.arms import RULE_BASED, RULES_VERSION, Activation
from rl.state import StateSpace
from server.contract.errors import ServiceError
from server.contract.vocabulary import ARM_NAMES
from server.jobs.processes import Jobs, run_for
from server.jobs.reports import message_json
from server.observability import metrics
from server.serving.policies import PolicyHolder
from server.settings import Settings
from server.store import activations, models, shadows, tasks
from server.store.database import Connection, Pool
from server.store.errors import STORE_ERRORS

log = structlog.get_logger()
WATCH_LOCK = 7270005
SHADOW_SECONDS = 5.0
LEAST_REST = 4.0
TASK = "rollout_watch"


async def watch_rollouts(settings: Settings, pool: Pool, jobs: Jobs) -> None:
    """Compares the arms again and again, on one replica at a time. Runs until cancelled."""
    while True:
        try:
            # The pool releases the lock when the connection is given back.
            async with pool.acquire() as connection:
                await _follow(connection)
                if await connection.fetchval("SELECT pg_try_advisory_lock($1)", WATCH_LOCK):
                    await _lead(connection, settings, jobs)
        except (ServiceError, RuntimeError, *STORE_ERRORS) as failure:
            log.warning("the rollout is not watched for now", error=repr(failure))
        metrics.no_arms()
        await asyncio.sleep(settings.watch_seconds)


async def _lead(connection: Connection, settings: Settings, jobs: Jobs) -> None:
    """What the one replica does that holds the lock, for as long as it can."""
    while True:
        started = time.monotonic()
        current = await _follow(connection)
        if current.experiment_id is None:
            metrics.no_arms()
        else:
            await _compare(connection, settings, jobs, current.experiment_id)
        # Where many interactions make a look long, looks take up a fifth of the time at most.
        spent = time.monotonic() - started
        await asyncio.sleep(max(settings.watch_seconds, LEAST_REST * spent))


async def _follow(connection: Connection) -> Activation:
    """What every replica shows; returns what is to be served."""
    metrics.training_gated(await tasks.last_was_gated(connection))
    metrics.taken_back(await activations.automatic_count(connection))
    current = await activations.current_activation(connection)
    metrics.rollout(current)
    return current


async def _compare(
    connection: Connection, settings: Settings, jobs: Jobs, experiment_id: int
) -> None:
    found = await run_for(jobs, pb.GetExperimentResponse, "experiment", str(experiment_id))
    metrics.arms(found)
    worse = [d for d in found.differences if d.verdict == pb.VERDICT_WORSE]
    if worse:
        await _take_back(connection, settings.space(), experiment_id, found, worse[0])


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
        while rolled := await activations.rollback(connection, reason, automatic=True):
            current, _ = rolled
            if await _can_be_served(connection, current, space):
                break
        await models.halt(connection, found.version, reason)
        await tasks.note(
            connection,
            TASK,
            f"experiment-{experiment_id}",
            json.dumps({"reason": reason, "experiment": message_json(found)}),
        )
    log.error(
        "rollout taken back", reason=reason, experiment_id=experiment_id, serving=current.version
    )


async def _can_be_served(connection: Connection, plan: Activation, space: StateSpace) -> bool:
    try:
        for arm in plan.arms().values():
            if arm.version != RULES_VERSION:
                await models.load_policy(connection, arm.version, space)
    except (models.CorruptModelError, models.IncompatibleModelError) as failure:
        log.error("model refused", version=plan.version, error=str(failure))
        return False
    return True


async def count_shadow(holder: PolicyHolder, pool: Pool) -> None:
    """Adds what this replica has counted of the shadowed version, until cancelled."""
    while True:
        await asyncio.sleep(SHADOW_SECONDS)
        with contextlib.suppress(*STORE_ERRORS):
            await flush_shadow(holder, pool)


async def flush_shadow(holder: PolicyHolder, pool: Pool) -> None:
    """Writes the counts; those that could not be written are kept for the next time."""
    shadow = holder.serving.shadow
    if shadow is None or not shadow.decisions:
        return
    decisions, agreements = shadow.decisions, shadow.agreements
    await shadows.count(pool, shadow.id, decisions, agreements)
    shadow.decisions -= decisions
    shadow.agreements -= agreements
