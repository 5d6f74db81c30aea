"""Whether everything works again: every server is asked for all that it is there for."""

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.soak.replicas import ADMIN
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import (
    models_pb2_grpc,
    recommendation_pb2_grpc,
    system_pb2_grpc,
    training_pb2_grpc,
)
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types

PROBED_USER = "person-0"
"""Somebody whose profile is stored."""
CALL_SECONDS = 2.0
STEP = 0.1
_UNDER_WAY = (tpb.TRAINING_RUN_STATUS_PENDING, tpb.TRAINING_RUN_STATUS_RUNNING)
_UNKNOWN_PROFILE = (pb.FALLBACK_REASON_NO_PROFILE, pb.FALLBACK_REASON_PROFILE_UNAVAILABLE)


class NotRecoveredError(Exception):
    """Something does not work again in time. The message says what."""


async def wait_well(addresses: Sequence[str], seconds: float) -> list[str]:
    """Returns when each server is well; ids of the interactions that it acknowledged meanwhile.

    Raises:
        NotRecoveredError: one is not within so many seconds.
    """
    deadline = time.monotonic() + seconds
    return list(await asyncio.gather(*(_wait_well(one, deadline) for one in addresses)))


async def _wait_well(address: str, deadline: float) -> str:
    problem = "it was not asked"
    while time.monotonic() < deadline:
        # A new connection each time: what is measured is the server, and not a channel's pauses.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            try:
                return await _is_well(channel)
            except grpc.RpcError as raised:
                problem = f"{raised.code().name}: {raised.details()}"
            except NotRecoveredError as failure:
                problem = str(failure)
        await asyncio.sleep(STEP)
    raise NotRecoveredError(f"{address}: {problem}")


async def _is_well(channel: grpc.aio.Channel) -> str:
    """The id of an interaction that was recorded. Raises where anything does not work."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
    _require(answer.status == health_pb2.HealthCheckResponse.SERVING, "it is not SERVING")
    stub: Any = recommendation_pb2_grpc.RecommendationServiceStub(channel)
    name = uuid.uuid4().hex
    # Of a stranger nothing is in memory: the database has to say that there is no profile.
    stranger, request = (
        pb.GetRecommendationParamsRequest(
            user_id=user,
            content_type=types.CONTENT_TYPE_MUSIC,
            mood=types.MOOD_CALM,
            time_of_day=types.TIME_OF_DAY_EVENING,
        )
        for user in (name, PROBED_USER)
    )
    decision = await stub.GetRecommendationParams(stranger, timeout=CALL_SECONDS)
    _require(decision.fallback_reason == pb.FALLBACK_REASON_NO_PROFILE, "it reads no profiles")
    decision = await stub.GetRecommendationParams(request, timeout=CALL_SECONDS)
    _require(decision.fallback_reason not in _UNKNOWN_PROFILE, "it finds no stored profile")
    interaction = pb.Interaction(
        interaction_id=name,
        user_id=PROBED_USER,
        decision_token=decision.decision_token,
        reactions=[types.REACTION_LIKE],
    )
    await stub.RecordInteractions(
        pb.RecordInteractionsRequest(interactions=[interaction]), timeout=CALL_SECONDS
    )
    system: Any = system_pb2_grpc.SystemServiceStub(channel)
    status = await system.GetSystemHealth(spb.GetSystemHealthRequest(), timeout=CALL_SECONDS)
    _require(status.database.answers, status.database.problem)
    served = status.served
    _require(not served.refused_reason, served.refused_reason)
    _require(
        served.serving_version == served.active_version,
        f"it serves version {served.serving_version}, and not {served.active_version}",
    )
    return name


def _require(works: bool, problem: str) -> None:
    if not works:
        raise NotRecoveredError(problem)


async def train(addresses: Sequence[str], seconds: float) -> tpb.TrainingRun:
    """Starts runs until one is completed, and returns it.

    Raises:
        NotRecoveredError: none is within so many seconds.
    """
    deadline = time.monotonic() + seconds
    problem = "no run was started"
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        while time.monotonic() < deadline:
            try:
                started = await stub.TriggerTraining(
                    tpb.TriggerTrainingRequest(), metadata=ADMIN, timeout=CALL_SECONDS
                )
                run = await _ended(stub, started.run.run_id, deadline)
                if run.status == tpb.TRAINING_RUN_STATUS_COMPLETED:
                    return run
                problem = f"run {run.run_id} is {tpb.TrainingRunStatus.Name(run.status)}"
            except grpc.RpcError as raised:
                problem = f"{raised.code().name}: {raised.details()}"
            await asyncio.sleep(STEP)
    raise NotRecoveredError(f"training: {problem}")


async def start_training(addresses: Sequence[str]) -> None:
    """Starts a run. Raises grpc.RpcError."""
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        stub: Any = training_pb2_grpc.TrainingServiceStub(channel)
        await stub.TriggerTraining(
            tpb.TriggerTrainingRequest(), metadata=ADMIN, timeout=CALL_SECONDS
        )


async def _ended(stub: Any, run_id: int, deadline: float) -> tpb.TrainingRun:
    while True:
        answer = await stub.GetTrainingRun(
            tpb.GetTrainingRunRequest(run_id=run_id), metadata=ADMIN, timeout=CALL_SECONDS
        )
        run: tpb.TrainingRun = answer.run
        if run.status not in _UNDER_WAY or time.monotonic() > deadline:
            return run
        await asyncio.sleep(STEP)


async def activate(address: str, version: int) -> None:
    """Serves a version. Raises grpc.RpcError."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = models_pb2_grpc.ModelServiceStub(channel)
        await stub.ActivateModel(
            mpb.ActivateModelRequest(version=version, reason="the end of the soak"),
            metadata=ADMIN,
            timeout=CALL_SECONDS,
        )


async def decisions(
    address: str, requests: Sequence[pb.GetRecommendationParamsRequest]
) -> list[pb.GetRecommendationParamsResponse]:
    """What a server decides. Raises grpc.RpcError."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        answer = await stub.BatchGetRecommendationParams(
            pb.BatchGetRecommendationParamsRequest(requests=requests), timeout=CALL_SECONDS
        )
        return list(answer.responses)
