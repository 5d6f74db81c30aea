"""SystemService: health, and the deletion of a person."""

import asyncio
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from recparams.v1 import system_pb2 as pb
from recparams.v1 import system_pb2_grpc as grpc_pb
from recparams_server.contract.errors import Violations
from recparams_server.rpc.rate_limit import RateLimit
from recparams_server.services.checks import LONGEST_USER_ID, check_name
from recparams_server.services.conversion import run_outcome, run_status, stamp
from recparams_server.services.runtime import Runtime
from recparams_server.settings import Settings
from recparams_server.store import learning_gain, system, tasks, users
from recparams_server.store.database import Connection
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.profiles import ProfileCache

LOOKS_PER_SECOND = 4.0
"""Looks at the database; who asks in between is told what the last one found."""
DATABASE_SECONDS = 0.4
"""Giving up takes as long again where a connection hangs: health must be told within a second."""


class SystemService(grpc_pb.SystemServiceServicer):
    """Serves SystemService: the health of this server and its database, whatever else fails."""

    def __init__(self, settings: Settings, runtime: Runtime, cache: ProfileCache) -> None:
        self._settings = settings
        self._runtime = runtime
        self._cache = cache
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._looking: asyncio.Task[pb.GetSystemHealthResponse] | None = None
        self._looks = RateLimit(LOOKS_PER_SECOND)

    async def GetSystemHealth(
        self, request: pb.GetSystemHealthRequest, context: Any
    ) -> pb.GetSystemHealthResponse:
        # Needs no key: however many ask, the database is asked a few times a second.
        if self._looking is None or (self._looking.done() and not self._looks.take("")):
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> pb.GetSystemHealthResponse:
        serving = self._runtime.holder.serving
        health = pb.GetSystemHealthResponse(
            server=pb.ServerHealth(
                version=version("recparams"),
                pid=os.getpid(),
                started_at=stamp(self._started_at),
                uptime_seconds=time.monotonic() - self._started,
            ),
            served=pb.ServedHealth(
                serving_version=serving.version,
                refused_reason=serving.refused,
                exploration=str(self._settings.exploration),
            ),
            scheduled_jobs=self._scheduled_jobs(),
        )
        try:
            await self._ask_database(health)
        except TimeoutError:
            health.database.problem = f"no answer within {DATABASE_SECONDS:g} s"
        except STORE_ERRORS as failure:
            # Its kind only: the message may name hosts and users.
            health.database.problem = f"cannot be used ({type(failure).__name__})"
        return health

    def _scheduled_jobs(self) -> list[pb.ScheduledJob]:
        schedule = self._settings.training_schedule()
        if schedule is None:
            return []
        return [
            pb.ScheduledJob(
                id=tasks.TASK,
                name="Train the recommendation model",
                next_run_time=stamp(schedule.following(datetime.now(UTC))),
                trigger=self._settings.schedule or "",
            )
        ]

    async def _ask_database(self, health: pb.GetSystemHealthResponse) -> None:
        pool = self._runtime.pool
        if pool is None:
            health.database.problem = "has not answered since this server started"
            return
        async with (
            asyncio.timeout(DATABASE_SECONDS),
            pool.acquire(timeout=DATABASE_SECONDS) as connection,
        ):
            asked = time.monotonic()
            await connection.fetchval("SELECT 1")
            health.database.select_seconds = time.monotonic() - asked
            health.database.answers = True
            await _add_active(connection, health.served)
            await _add_training(connection, health)
            gain = await learning_gain.newest(connection)
            if gain is not None:
                health.learning_gain.CopyFrom(gain)

    async def DeleteUserData(
        self, request: pb.DeleteUserDataRequest, context: Any
    ) -> pb.DeleteUserDataResponse:
        violations = Violations()
        check_name(request.user_id, LONGEST_USER_ID, "user_id", violations)
        violations.raise_any()
        deleted = await users.delete(self._runtime.require_pool(), request.user_id)
        self._cache.forget(request.user_id)
        return pb.DeleteUserDataResponse(**asdict(deleted))


async def _add_active(connection: Connection, served: pb.ServedHealth) -> None:
    active = await system.active_model(connection)
    served.active_version = 0
    if active is not None:
        served.active_version = active["version"] or 0
        served.active_since.FromDatetime(active["activated_at"])
        if active["created_at"] is not None:
            served.active_created_at.FromDatetime(active["created_at"])


async def _add_training(connection: Connection, health: pb.GetSystemHealthResponse) -> None:
    await tasks.fail_dead_runs(connection)
    run = await system.last_run(connection)
    # Only the newest run can be under way.
    status = None if run is None else run["status"]
    health.queue.runs_pending = int(status == "pending")
    health.queue.runs_running = int(status == "running")
    waiting = await system.interactions_waiting(connection)
    if waiting is not None:
        health.queue.interactions_waiting = waiting
    if run is not None:
        health.last_training_run.CopyFrom(
            pb.LastTrainingRun(
                run_id=run["id"],
                status=run_status(run["status"]),
                created_at=stamp(run["executed_at"]),
                finished_at=stamp(run["finished_at"]),
                duration_seconds=run["seconds"],
                model_version=run["model_version"] or 0,
                outcome=run_outcome(run["outcome"]),
                outcome_reason=run["outcome_reason"],
            )
        )
