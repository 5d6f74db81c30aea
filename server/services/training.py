"""TrainingService: starting, following and stopping runs, and evaluating what was logged."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

from recparams.v1 import evaluation_pb2
from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from rl.hyperparameters import Hyperparameters
from rl.learners import settings_of
from rl.objectives import Objectives
from rl.state import StateSpace
from server import tracing
from server.config import Settings
from server.database import Connection, Pool
from server.errors import ServiceError, Violations, error, not_found
from server.evaluation_request import ACTIVE, RANDOM, RULES, EvaluationRequest
from server.processes import run_json
from server.requests import FUTURE_ALLOWED, check_timestamp, to_datetime
from server.runtime import Runtime
from server.services.conversion import page_bounds, run_message
from server.services.versions import check_evaluated
from server.store import models, tasks, training
from server.training_request import RunRequest

WATCH_SECONDS = 0.25
MOST_DAYS = 3650
MOST_INTERACTIONS = 1_000_000_000
LONGEST_REQUEST_ID = 64
MOST_POLICIES = 16
_BUILTIN = {
    evaluation_pb2.BUILTIN_POLICY_ACTIVE: ACTIVE,
    evaluation_pb2.BUILTIN_POLICY_RULE_BASED: RULES,
    evaluation_pb2.BUILTIN_POLICY_UNIFORM_RANDOM: RANDOM,
}


class TrainingService(grpc_pb.TrainingServiceServicer):
    """Runs are rows of system_tasks, so any replica answers for any run."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime

    async def TriggerTraining(
        self, request: pb.TriggerTrainingRequest, context: Any
    ) -> pb.TriggerTrainingResponse:
        return pb.TriggerTrainingResponse(run=await self.start(request))

    async def start(
        self, request: pb.TriggerTrainingRequest, connection: Connection | None = None
    ) -> pb.TrainingRun:
        """Starts a run, or returns the one that this request_id started. Raises ServiceError."""
        wanted = self._parse(request)
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
            await self._runtime.require_workers().start_training(pool, run_id)
        except BaseException:
            await tasks.end(store, run_id, "failed", "the trainer could not be started")
            raise

    def _parse(self, request: pb.TriggerTrainingRequest) -> RunRequest:
        violations = Violations()
        if len(request.request_id) > LONGEST_REQUEST_ID or "\x00" in request.request_id:
            violations.add("request_id", f"must have up to {LONGEST_REQUEST_ID} characters")
        days_back = _bounded(request, "days_back", None, MOST_DAYS, violations)
        minimum = _bounded(
            request,
            "min_interactions_per_user",
            self._settings.min_interactions_per_user,
            MOST_INTERACTIONS,
            violations,
        )
        if request.mode not in pb.TrainingMode.values():
            violations.add("mode", f"there is no mode {request.mode}")
        algorithm = request.algorithm or self._settings.algorithm
        hyperparameters = self._hyperparameters(algorithm, request.hyperparameters, violations)
        if algorithm != self._settings.algorithm and request.mode != pb.TRAINING_MODE_REBUILD:
            violations.add(
                "algorithm",
                "needs mode TRAINING_MODE_REBUILD to be another than the "
                f"configured {self._settings.algorithm}",
            )
        objectives = self._objectives(request, violations)
        as_of = _as_of(request, violations)
        violations.raise_any()
        return RunRequest(
            rebuild=request.mode == pb.TRAINING_MODE_REBUILD,
            days_back=days_back,
            min_interactions_per_user=minimum or 1,
            hyperparameters=hyperparameters,
            as_of=as_of,
            activate=request.activate if request.HasField("activate") else True,
            objectives=objectives,
            apart=request.HasField("objectives") or algorithm != self._settings.algorithm,
            algorithm=algorithm,
        )

    def _hyperparameters(
        self, algorithm: str, message: pb.Hyperparameters, violations: Violations
    ) -> Hyperparameters:
        configured = self._settings.hyperparameters()
        values = (
            configured.to_dict()
            if algorithm == self._settings.algorithm
            else self._settings.common_hyperparameters()
        )
        for field, value in message.ListFields():
            values |= value if field.name == "algorithm_parameters" else {field.name: value}
        try:
            return settings_of(algorithm, values)
        except ValueError as failure:
            name, _, description = str(failure).partition(" ")
            inside = name in message.algorithm_parameters
            path = "hyperparameters.algorithm_parameters." if inside else "hyperparameters."
            violations.add("algorithm" if name == "algorithm" else path + name, description)
            return configured

    def _objectives(self, request: pb.TriggerTrainingRequest, violations: Violations) -> Objectives:
        configured = self._settings.objectives()
        if not request.HasField("objectives"):
            return configured
        if request.mode != pb.TRAINING_MODE_REBUILD:
            violations.add("objectives", "need mode TRAINING_MODE_REBUILD")
        return _overridden(configured, request.objectives, "objectives", violations)

    async def _check_base(self, store: Connection | Pool) -> None:
        """Refuses an incremental run that would go on from another state space."""
        version = await training.base_version(store)
        row = None if version is None else await models.describe(store, version)
        if row is None:
            return
        for what, same in (
            (
                "built for another state space",
                StateSpace.from_dict(json.loads(row["space"])) == self._settings.space(),
            ),
            (f"learned by {row['algorithm']}", row["algorithm"] == self._settings.algorithm),
        ):
            if not same:
                raise error(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "MODEL_INCOMPATIBLE",
                    f"model version {version} was {what}: train with mode TRAINING_MODE_REBUILD",
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

    async def WatchTrainingRun(
        self, request: pb.WatchTrainingRunRequest, context: Any
    ) -> AsyncIterator[pb.WatchTrainingRunResponse]:
        before = None
        while True:
            with tracing.quiet():
                run = await self._run(request.run_id)
            if run != before:
                yield pb.WatchTrainingRunResponse(run=run)
            if run.status not in (
                pb.TRAINING_RUN_STATUS_PENDING,
                pb.TRAINING_RUN_STATUS_RUNNING,
            ):
                return
            before = run
            await asyncio.sleep(WATCH_SECONDS)

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
        row = await tasks.fetch(pool, run_id)
        if row is None:
            raise not_found(f"training run {run_id}")
        return run_message(row)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Any) -> pb.EvaluateResponse:
        violations = Violations()
        days = _bounded(request, "test_days", 3, MOST_DAYS, violations)
        end = _as_of(request, violations)
        policies = _policies(request.policies, violations)
        confidence = request.confidence if request.HasField("confidence") else 0.95
        if not 0.5 <= confidence <= 0.999:
            violations.add("confidence", f"must be from 0.5 to 0.999, not {confidence:g}")
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
        found = await run_json(self._runtime.require_workers(), "evaluate", wanted.to_json())
        response = ParseDict(found, pb.EvaluateResponse())
        response.period_start.FromDatetime(wanted.start)
        response.period_end.FromDatetime(wanted.end)
        return response


def _overridden(
    configured: Objectives, message: Message, path: str, violations: Violations
) -> Objectives:
    """Weights with what a message sets; notes a value that they refuse."""
    try:
        return replace(configured, **{field.name: value for field, value in message.ListFields()})
    except ValueError as failure:
        name, _, description = str(failure).partition(" ")
        violations.add(f"{path}.{name}", description)
        return configured


def _policies(
    messages: Sequence[evaluation_pb2.Policy], violations: Violations
) -> tuple[int | str, ...]:
    """The policies to evaluate; notes those that are none."""
    if len(messages) > MOST_POLICIES:
        violations.add("policies", f"must have up to {MOST_POLICIES} entries")
    wanted: list[int | str] = []
    for position, message in enumerate(messages):
        builtin = _BUILTIN.get(message.builtin)
        if message.version > 0:
            wanted.append(message.version)
        elif builtin is not None:
            wanted.append(builtin)
        else:
            violations.add(f"policies[{position}]", "needs a version from 1, or a builtin")
    return tuple(wanted) or (ACTIVE, RULES, RANDOM)


def _bounded(
    request: Any, name: str, default: int | None, most: int, violations: Violations
) -> int | None:
    """An optional whole number from 1 to `most`."""
    if not request.HasField(name):
        return default
    value = int(getattr(request, name))
    if not 1 <= value <= most:
        violations.add(name, f"must be from 1 to {most}, not {value}")
    return value


def _as_of(request: Any, violations: Violations) -> datetime:
    """The instant a request stands at: its as_of, or now."""
    now = datetime.now(UTC)
    if not request.HasField("as_of") or not check_timestamp(request.as_of, "as_of", violations):
        return now
    moment = to_datetime(request.as_of)
    if moment > now + FUTURE_ALLOWED:
        violations.add("as_of", "lies in the future")
    return moment
