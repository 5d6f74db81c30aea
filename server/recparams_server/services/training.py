"""TrainingService: starting, following and stopping runs, and evaluating what was logged."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import asyncpg
import grpc

from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from recparams.v1 import tuning_pb2
from recparams_rl.state import StateSpace
from recparams_server.contract.errors import ServiceError, Violations, error, not_found
from recparams_server.jobs.processes import run_for
from recparams_server.jobs.requests import RAY, EvaluationRequest
from recparams_server.observability import tracing
from recparams_server.services.conversion import page_bounds, run_message
from recparams_server.services.run_followers import RunFollowers
from recparams_server.services.runtime import Runtime
from recparams_server.services.training_requests import (
    MOST_DAYS,
    as_of_or_now,
    bounded,
    confidence_of,
    policies_of,
    run_request,
    tuning_request,
)
from recparams_server.services.versions import check_evaluated, refused
from recparams_server.settings import Settings
from recparams_server.store import learning_gain, model_rows, tasks, training, tuning
from recparams_server.store.database import Connection, Pool

LONGEST_PROBLEM = 300
REBUILD = "train with mode TRAINING_MODE_REBUILD"


class TrainingService(grpc_pb.TrainingServiceServicer):
    """Serves TrainingService. Runs are rows of system_tasks: any replica answers for any run."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._followers = RunFollowers(self._look)

    async def TriggerTraining(
        self, request: pb.TriggerTrainingRequest, context: Any
    ) -> pb.TriggerTrainingResponse:
        return pb.TriggerTrainingResponse(run=await self.start(request))

    async def start(
        self, request: pb.TriggerTrainingRequest, connection: Connection | None = None
    ) -> pb.TrainingRun:
        """Starts a run, or returns the one that this request_id started. Raises ServiceError."""
        wanted = run_request(self._settings, request)
        if wanted.engine == RAY and find_spec("ray") is None:
            raise error(
                grpc.StatusCode.FAILED_PRECONDITION,
                "ENGINE_MISSING",
                "this server has no Ray: pip install 'recparams[ray]'",
            )
        store = connection or self._runtime.require_pool()
        request_id = request.request_id or uuid.uuid4().hex
        known = await tasks.fetch_by_request(store, request_id)
        if known is None:
            await tasks.fail_dead_runs(store)
            if not wanted.rebuild:
                await self._check_base(store)
            try:
                run_id = await tasks.create(store, request_id, wanted.to_dict())
            except asyncpg.UniqueViolationError:
                known = await tasks.fetch_by_request(store, request_id)
                if known is None:
                    raise await self._already_running(store) from None
            else:
                await self._start(store, run_id)
                known = await tasks.fetch(store, run_id)
        return run_message(known)

    async def _start(self, store: Connection | Pool, run_id: int) -> None:
        try:
            pool = self._runtime.require_pool()
            await self._runtime.require_jobs().start_training(pool, run_id)
        except BaseException:
            await tasks.end(store, run_id, "failed", "the trainer could not be started")
            raise

    async def _check_base(self, store: Connection | Pool) -> None:
        """Refuses an incremental run that would go on from what it cannot."""
        version = await training.base_version(store)
        row = None if version is None else await model_rows.describe(store, version)
        if row is None:
            return
        problem = await model_rows.learner_problem(store, row)
        if problem:
            raise refused("MODEL_CORRUPT", f"{problem[:LONGEST_PROBLEM]}: {REBUILD}")
        space = StateSpace.from_dict(json.loads(row["space"]))
        for what, same in (
            ("built for another state space", space == self._settings.space()),
            (f"learned by {row['algorithm']}", row["algorithm"] == self._settings.algorithm),
        ):
            if not same:
                raise refused(
                    "MODEL_INCOMPATIBLE", f"model version {version} was {what}: {REBUILD}"
                )

    async def _already_running(self, store: Connection | Pool) -> ServiceError:
        row = await tasks.live(store)
        run_id = "" if row is None else str(row["id"])
        return error(
            grpc.StatusCode.FAILED_PRECONDITION,
            "TRAINING_ALREADY_RUNNING",
            f"training run {run_id} is under way: watch it or wait for it",
            {"run_id": run_id},
        )

    async def GetTrainingRun(
        self, request: pb.GetTrainingRunRequest, context: Any
    ) -> pb.GetTrainingRunResponse:
        return pb.GetTrainingRunResponse(run=await self._run(request.run_id))

    async def ListTrainingRuns(
        self, request: pb.ListTrainingRunsRequest, context: Any
    ) -> pb.ListTrainingRunsResponse:
        size, below = page_bounds(request.page_size, request.page_token)
        pool = self._runtime.require_pool()
        await tasks.fail_dead_runs(pool)
        rows = await tasks.page(pool, below, size + 1)
        return pb.ListTrainingRunsResponse(
            runs=[run_message(row) for row in rows[:size]],
            next_page_token=str(rows[size - 1]["id"]) if len(rows) > size else "",
        )

    async def WatchTrainingRun(  # type: ignore[override]
        self, request: pb.WatchTrainingRunRequest, context: Any
    ) -> AsyncIterator[tuple[bytes, ...]]:
        async with aclosing(self._followers.watch(request.run_id)) as responses:
            async for response in responses:
                yield (response,)

    async def _look(self, run_id: int) -> pb.TrainingRun:
        """Returns a run as `_run` does, without writing unless a trainer has died."""
        pool = self._runtime.require_pool()
        with tracing.quiet():
            if await tasks.has_dead_runs(pool):
                await tasks.fail_dead_runs(pool)
            return await self._fetch(pool, run_id)

    async def CancelTrainingRun(
        self, request: pb.CancelTrainingRunRequest, context: Any
    ) -> pb.CancelTrainingRunResponse:
        run = await self._run(request.run_id)
        if not await tasks.request_cancel(self._runtime.require_pool(), request.run_id):
            raise error(
                grpc.StatusCode.FAILED_PRECONDITION,
                "RUN_ENDED",
                f"training run {run.run_id} has ended",
            )
        return pb.CancelTrainingRunResponse(run=await self._run(request.run_id))

    async def _run(self, run_id: int) -> pb.TrainingRun:
        pool = self._runtime.require_pool()
        await tasks.fail_dead_runs(pool)
        return await self._fetch(pool, run_id)

    async def _fetch(self, pool: Pool, run_id: int) -> pb.TrainingRun:
        row = await tasks.fetch(pool, run_id)
        if row is None:
            raise not_found(f"training run {run_id}")
        return run_message(row)

    async def Tune(  # type: ignore[override]
        self, request: tuning_pb2.TuneRequest, context: Any
    ) -> AsyncIterator[tuple[bytes, ...]]:
        wanted = tuning_request(request)
        jobs = self._runtime.require_jobs()
        async with aclosing(jobs.messages("tune", wanted.to_json())) as responses:
            async for response in responses:
                yield (response,)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        violations = Violations()
        days = bounded(request, "test_days", 3, MOST_DAYS, violations)
        end = as_of_or_now(request, violations)
        policies = policies_of(request.policies, violations)
        confidence = confidence_of(request, violations)
        violations.raise_any()
        wanted = EvaluationRequest(
            start=end - timedelta(days=days or 3),
            end=end,
            policies=policies,
            include_trained=request.include_trained,
            confidence=confidence,
            by_segment=not request.overall_only,
        )
        await check_evaluated(self._runtime, policies)
        response = await run_for(
            self._runtime.require_jobs(), pb.EvaluateResponse, "evaluate", wanted.to_json()
        )
        pool = self._runtime.require_pool()
        gain, found = await learning_gain.newest(pool), await tuning.newest(pool)
        if gain is not None:
            response.learning_gain.CopyFrom(gain)
        if found is not None:
            response.tuning.CopyFrom(found)
        return response
