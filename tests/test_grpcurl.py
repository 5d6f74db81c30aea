"""grpcurl, the real one, against a real server: what an operator types."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from recparams_server.app import App
from tests.processes import communicate
from tests.support import ADMIN_KEY, Client, request

GRPCURL = shutil.which("grpcurl", path=str(Path(sys.executable).parent))


async def grpcurl(*arguments: str) -> tuple[int | None, str]:
    assert GRPCURL is not None
    process = await asyncio.create_subprocess_exec(
        GRPCURL,
        "-plaintext",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await communicate(process)
    return process.returncode, output.decode()


@pytest.fixture
def address(app: App) -> str:
    return f"127.0.0.1:{app.port}"


async def test_it_lists_and_describes(client: Client, address: str) -> None:
    code, listed = await grpcurl(address, "list")
    assert code == 0
    assert set(listed.split()) == {
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "recparams.v1.ModelService",
        "recparams.v1.PolicyService",
        "recparams.v1.RecommendationService",
        "recparams.v1.RolloutService",
        "recparams.v1.SystemService",
        "recparams.v1.TrainingService",
    }
    code, described = await grpcurl(address, "describe", "recparams.v1.TrainingService")
    assert code == 0
    for method in ("TriggerTraining", "WatchTrainingRun", "Evaluate"):
        assert f"rpc {method} " in described
    code, described = await grpcurl(address, "describe", "recparams.v1.Mood")
    assert "MOOD_STRESSED = 8;" in described


async def test_it_calls(client: Client, address: str) -> None:
    data = json.dumps(MessageToDict(request()))
    method = "recparams.v1.RecommendationService/GetRecommendationParams"
    code, answer = await grpcurl("-d", data, address, method)
    assert code == 0, answer
    decision = json.loads(answer)
    assert decision["params"] == {
        "min_energy": 0,
        "max_energy": 0.4,
        "valence": 0.3,
        "genre_count": 5,
        "exploration_rate": 0.5,
        "popularity_min": 0,
        "popularity_max": 50,
    }
    reaction = {
        "interactions": [
            {
                "interaction_id": "g1",
                "user_id": "ada",
                "decision_token": decision["decision_token"],
                "reactions": ["REACTION_COMPLETE", "REACTION_SHARE"],
            }
        ]
    }
    method = "recparams.v1.RecommendationService/RecordInteractions"
    code, answer = await grpcurl("-d", json.dumps(reaction), address, method)
    assert (code, json.loads(answer)) == (0, {"recorded": 1})


async def test_it_trains_and_watches(client: Client, address: str) -> None:
    key = ("-H", f"x-admin-key: {ADMIN_KEY}")
    code, answer = await grpcurl(*key, address, "recparams.v1.TrainingService/TriggerTraining")
    assert code == 0, answer
    run_id = json.loads(answer)["run"]["run_id"]
    code, answer = await grpcurl(
        *key,
        "-d",
        json.dumps({"run_id": run_id}),
        address,
        "recparams.v1.TrainingService/WatchTrainingRun",
    )
    assert code == 0
    assert "TRAINING_RUN_STATUS_COMPLETED" in answer


async def test_it_shows_what_is_wrong(client: Client, address: str) -> None:
    code, answer = await grpcurl(address, "recparams.v1.TrainingService/Evaluate")
    assert code != 0
    assert "x-admin-key metadata is required" in answer
    method = "recparams.v1.RecommendationService/GetRecommendationParams"
    code, answer = await grpcurl("-d", '{"user_id": "ada"}', address, method)
    assert "InvalidArgument" in answer
    assert "content_type" in answer


async def test_health(client: Client, address: str) -> None:
    for service in ("", "recparams.v1.RecommendationService"):
        code, answer = await grpcurl(
            "-d", json.dumps({"service": service}), address, "grpc.health.v1.Health/Check"
        )
        assert (code, json.loads(answer)) == (0, {"status": "SERVING"})
