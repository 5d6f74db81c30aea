"""The orchestrator against a real server on a real channel, where runs and answers go wrong."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import models_pb2_grpc, training_pb2_grpc
from recparams.v1 import training_pb2 as tpb
from recparams_client import RecParamsError, RLTrainingOrchestrator, get_rl_orchestrator

KEY = "an-admin-key"
PROFILE = {
    "openness": 75,
    "conscientiousness": 60,
    "extraversion": 40,
    "agreeableness": 80,
    "neuroticism": 30,
}
HERE = {"content_type": "music", "mood": "calm", "time_of_day": "evening"}
RUNNING = tpb.TrainingRun(run_id=7, status=tpb.TRAINING_RUN_STATUS_RUNNING)
COMPLETED = tpb.TrainingRun(
    run_id=7,
    status=tpb.TRAINING_RUN_STATUS_COMPLETED,
    outcome=tpb.TRAINING_OUTCOME_REFUSED,
    outcome_reason="it is worse",
    model_version=3,
    users_trained=2,
    interactions_trained=5,
    average_reward=0.25,
    statistics=tpb.ModelStatistics(total_states=4, max_q_value=0.5),
)
FAILED = tpb.TrainingRun(run_id=7, status=tpb.TRAINING_RUN_STATUS_FAILED, error="no room")


class Training(training_pb2_grpc.TrainingServiceServicer, models_pb2_grpc.ModelServiceServicer):
    """Shows `looks`, the updates of one call to watch each, which is lost where a run goes on."""

    address: str

    def __init__(self) -> None:
        self.looks: list[list[tpb.TrainingRun]] = []
        self.triggered: list[tpb.TriggerTrainingRequest] = []
        self.models: list[mpb.Model] = []

    async def _check(self, context: Any) -> None:
        if dict(context.invocation_metadata()).get("x-admin-key") != KEY:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "x-admin-key is required")

    async def TriggerTraining(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        self.triggered.append(request)
        return tpb.TriggerTrainingResponse(run=RUNNING)

    async def WatchTrainingRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        assert request.run_id == RUNNING.run_id
        for run in self.looks.pop(0):
            yield tpb.WatchTrainingRunResponse(run=run)
        if run is RUNNING:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    async def Evaluate(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not {request.test_days} days")

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        return mpb.ListModelsResponse(models=self.models[: request.page_size])


@pytest.fixture
async def training(running: Any) -> AsyncIterator[Training]:
    """Next to the service of `running`, on a port of its own."""
    service, server = Training(), grpc.aio.server()
    training_pb2_grpc.add_TrainingServiceServicer_to_server(service, server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield service
    await server.stop(0)


async def test_parameters_come_with_their_decision(running: Any) -> None:
    with RLTrainingOrchestrator(running.address, decision_timeout=30) as orchestrator:
        params = await asyncio.to_thread(
            orchestrator.get_recommendation_params, "ada", PROFILE, **HERE
        )
        stored = await asyncio.to_thread(
            orchestrator.get_recommendation_params, "ada", None, **HERE
        )
        with pytest.raises(TypeError, match="neurotic"):
            orchestrator.get_recommendation_params("ada", {**PROFILE, "neurotic": 1}, **HERE)
        with pytest.raises(ValueError, match="mood"):
            orchestrator.get_recommendation_params("ada", PROFILE, "music", "bored", "evening")
    assert params == params.decision.params.as_dict() == stored
    assert params.decision.decision_token == b"token"
    sent = running.service.received
    assert (sent[0].personality.openness, sent[0].mood) == (75, 5)
    assert not sent[1].HasField("personality")


async def test_a_run_is_followed_across_a_restart(training: Training) -> None:
    training.looks = [[RUNNING], [RUNNING, COMPLETED]]
    with RLTrainingOrchestrator(training.address, admin_key=KEY) as orchestrator:
        result = await orchestrator.train(days_back=14, min_interactions_per_user=2)
    assert result.pop("agent_stats")["max_q_value"] == 0.5
    assert result == {
        "run_id": 7,
        "status": "completed",
        "outcome": "refused",
        "outcome_reason": "it is worse",
        "model_version": 3,
        "users_trained": 2,
        "interactions_trained": 5,
        "average_reward": 0.25,
    }
    (request,) = training.triggered
    assert (request.days_back, request.min_interactions_per_user) == (14, 2)
    assert request.request_id


async def test_a_run_that_fails_raises(training: Training) -> None:
    training.looks = [[RUNNING, FAILED]]
    with (
        RLTrainingOrchestrator(training.address, admin_key=KEY) as orchestrator,
        pytest.raises(RuntimeError, match="training run 7 failed: no room"),
    ):
        await orchestrator.train()
    (request,) = training.triggered
    assert not request.HasField("days_back")


async def test_refusals_are_errors_of_the_client(training: Training) -> None:
    with (
        RLTrainingOrchestrator(training.address, admin_key=KEY) as orchestrator,
        pytest.raises(RecParamsError, match="INVALID_ARGUMENT: not 0 days"),
    ):
        await orchestrator.evaluate_model(test_days=0)
    with RLTrainingOrchestrator(training.address) as orchestrator:
        with pytest.raises(RecParamsError, match="UNAUTHENTICATED"):
            await orchestrator.train()
        with pytest.raises(RecParamsError, match="UNAUTHENTICATED"):
            await asyncio.to_thread(orchestrator.agent.get_stats)


async def test_statistics_are_those_of_the_newest_version(training: Training) -> None:
    with RLTrainingOrchestrator(training.address, admin_key=KEY) as orchestrator:
        none = await asyncio.to_thread(orchestrator.agent.get_stats)
        assert none["model_version"] == 0 and not any(none.values())
        newest = mpb.Model(version=3, statistics=COMPLETED.statistics)
        training.models = [newest, mpb.Model(version=2)]
        stats = await asyncio.to_thread(orchestrator.agent.get_stats)
        assert (stats["model_version"], stats["total_states"]) == (3, 4)
        training.models = [mpb.Model(version=4, problem="its checksum is wrong")]
        with pytest.raises(RuntimeError, match="version 4: its checksum is wrong"):
            await asyncio.to_thread(orchestrator.agent.get_stats)


async def test_without_a_server_the_rules_answer() -> None:
    with RLTrainingOrchestrator("127.0.0.1:1", admin_key=KEY) as orchestrator:
        params = await asyncio.to_thread(
            orchestrator.get_recommendation_params, "ada", PROFILE, **HERE
        )
        assert params.decision.is_fallback and params["genre_count"] == 5
        with pytest.raises(RecParamsError, match="UNAVAILABLE"):
            await orchestrator.evaluate_model()


def test_the_one_of_the_process_is_set_by_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get_rl_orchestrator.cache_clear()
    monkeypatch.setenv("RECPARAMS_CA", "/nowhere/ca.pem")
    with pytest.raises(FileNotFoundError):
        get_rl_orchestrator()
    monkeypatch.delenv("RECPARAMS_CA")
    assert get_rl_orchestrator() is get_rl_orchestrator()
    get_rl_orchestrator().close()
    get_rl_orchestrator.cache_clear()
