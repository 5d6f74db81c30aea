"""The examples, run as their readers run them."""

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import asyncpg
import pytest

from examples.algorithm import SampleMean
from examples.backend import CATALOGUE, search
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import training_pb2 as tpb
from recparams_client import RecommendationParams
from recparams_rl.action import ACTIONS, Action
from recparams_rl.learners.registry import LEARNERS
from recparams_server.app import App
from recparams_server.jobs.forked import Template
from recparams_server.settings import Settings
from tests.faults import SMALL, eventually
from tests.processes import communicate
from tests.support import ADMIN, ROOT, Client, in_process, request, train
from tests.trust import likes_high_energy, live


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


async def backend(address: str) -> tuple[str, str]:
    """What examples/backend.py prints, and what it warns of; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "examples/backend.py", address),
        env=dict(os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await communicate(process)
    assert process.returncode == 0, errors
    return output.decode(), errors.decode()


@pytest.mark.usefixtures("client")
async def test_the_backend_asks_searches_and_reports(app: App, db: asyncpg.Connection) -> None:
    printed, warned = await backend(f"127.0.0.1:{app.port}")
    assert not warned
    assert "ada: low, diverse, exploratory (rule_based): Harbour at Six, " in printed
    rows = await db.fetch(
        """
        SELECT user_id, liked, skipped, propensity, openness
        FROM interactions_named ORDER BY id
        """
    )
    assert len(rows) == sum(
        int(line.split()[0]) for line in printed.splitlines() if "recorded" in line
    )
    assert {row["user_id"] for row in rows} >= {"ada", "ben"}
    assert all(row["propensity"] == 1.0 and row["openness"] for row in rows)
    assert all(row["liked"] != row["skipped"] for row in rows)


async def test_without_a_server_the_backend_goes_on() -> None:
    printed, warned = await backend("127.0.0.1:1")
    assert warned.startswith("recparams at 127.0.0.1:1 does not answer") and "refused" in warned
    assert "ada: low, diverse, exploratory (rule_based): Harbour at Six, " in printed
    assert "recorded" not in printed


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_the_catalogue_is_searched_within_the_parameters(action: Action) -> None:
    params = RecommendationParams(**asdict(action.to_params()))
    known = frozenset(track.title for track in CATALOGUE[::2])
    found = search(params, known)
    assert all(params.min_energy <= track.energy <= params.max_energy for track in found)
    assert len({track.genre for track in found}) <= params.genre_count


async def test_an_algorithm_of_ones_own_learns_more_than_nothing() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, ROOT / "examples/algorithm.py"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await communicate(process)
    assert process.returncode == 0
    values = {line.split()[0]: float(line.split()[1]) for line in output.decode().splitlines()}
    # Chance is worth 0, by how rewards are weighed.
    assert values.keys() == {"q_learning", "sample_mean"}
    assert min(values.values()) > 0.3


@pytest.fixture
def sample_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry's line, in this process and, by Python's own hook, in those it starts."""
    monkeypatch.setitem(LEARNERS, SampleMean.algorithm, SampleMean)
    (tmp_path / "sitecustomize.py").write_text(
        "from examples.algorithm import LEARNERS, SampleMean\n"
        "LEARNERS[SampleMean.algorithm] = SampleMean\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")


@pytest.fixture
def template(sample_mean: None) -> Iterator[Template]:
    """One that has imported the registry with that line."""
    own = Template()
    yield own
    own.close()


async def test_one_line_of_registry_is_all_the_service_needs(
    sample_mean: None, client: Client
) -> None:
    people = [f"person-{n}" for n in range(40)]
    await live(client, people, likes_high_energy)
    run = await train(
        client,
        algorithm="sample_mean",
        hyperparameters=tpb.Hyperparameters(algorithm_parameters={"optimism": 0.3}),
        mode=tpb.TRAINING_MODE_REBUILD,
        days_back=7,
    )
    assert run.algorithm == "sample_mean"
    assert run.hyperparameters.algorithm_parameters == {"optimism": 0.3}
    assert run.interactions_trained == len(people)
    assert {gate.name: gate.passed for gate in run.gates}["q_bound"]
    await client.models.ActivateModel(
        mpb.ActivateModelRequest(version=run.model_version), metadata=ADMIN
    )

    async def is_served() -> bool:
        answer = await client.recommendation.GetRecommendationParams(request(people[0]))
        return bool(answer.model_version == run.model_version)

    await eventually(is_served)
