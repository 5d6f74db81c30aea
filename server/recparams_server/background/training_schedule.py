"""Starts training at the scheduled instants, once among all replicas."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from recparams.v1 import training_pb2 as pb
from recparams_server.contract.errors import ServiceError
from recparams_server.settings.schedule import Schedule
from recparams_server.store import tasks
from recparams_server.store.database import Connection, Pool
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.locks import SCHEDULE_LOCK, try_lock

log = structlog.get_logger()
RETRY_SECONDS = 30.0
SHORTEST_SLEEP = 1.0
LONGEST_SLEEP = 60.0
"""The clock may be set, and machines may be suspended."""

Start = Callable[[pb.TriggerTrainingRequest, Connection], Awaitable[pb.TrainingRun]]


async def train_on_schedule(schedule: Schedule, grace: timedelta, pool: Pool, start: Start) -> None:
    """Sees to it that every instant gets its run, until cancelled.

    All replicas do so: the one that gets the lock first starts the run, and the others find it.

    Args:
        schedule: the instants.
        grace: how late a run may start, where nobody was up or another run was under way.
        pool: the database.
        start: starts a run as TriggerTraining does.
    """
    done = None
    while True:
        now = datetime.now(UTC)
        instant = schedule.latest(now)
        due = instant != done and now - instant <= grace
        if due and not await _run_is_there(instant, pool, start):
            await asyncio.sleep(RETRY_SECONDS)
            continue
        done = instant
        seconds = (schedule.following(now) - datetime.now(UTC)).total_seconds()
        await asyncio.sleep(min(max(SHORTEST_SLEEP, seconds), LONGEST_SLEEP))


async def _run_is_there(instant: datetime, pool: Pool, start: Start) -> bool:
    """Starts the run of an instant unless it was started; False where it must be tried again."""
    request_id = f"schedule-{instant:%Y-%m-%dT%H:%M:%SZ}"
    try:
        async with pool.acquire() as connection:
            if not await try_lock(connection, SCHEDULE_LOCK):
                return False
            if await tasks.fetch_by_request(connection, request_id) is not None:
                return True
            run = await start(pb.TriggerTrainingRequest(request_id=request_id), connection)
    except ServiceError as failure:
        log.warning("scheduled training put off", request_id=request_id, error=failure.message)
        return False
    except STORE_ERRORS as failure:
        log.warning("scheduled training put off", request_id=request_id, error=failure)
        return False
    log.info("scheduled training started", request_id=request_id, run_id=run.run_id)
    return True
