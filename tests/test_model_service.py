"""ModelService over a real channel: versions, activation, rollback, and tables in and out."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.state import Context, StateSpace
from recparams_server.jobs.processes import INVALID_FILE
from recparams_server.jobs.tables import import_table
from recparams_server.settings import Settings
from recparams_server.store.models import load_table
from tests.faults import IN_SPACE
from tests.support import (
    ADMIN,
    Client,
    failure_of,
    in_process,
    logged,
    record,
    request,
    train,
)

SEEDS_SPACE = StateSpace()
SEED_KEY = "(3, 3, 2, 4, 1, 'music', 'calm', 'evening')"
SEED_STATE = SEEDS_SPACE.index((75, 60, 40, 80, 30), Context("music", "calm", "evening"))
SMALL_KEY = "(1, 1, 0, 1, 0, 'music', 'calm', 'evening')"
"""The same state in `SPACE`."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **IN_SPACE, gates="report")


async def version_trained(client: Client, name: str, action: tuple[int, int, int]) -> int:
    """A new version in which the seed's person likes an action most."""
    when = datetime.now(UTC) - timedelta(hours=3)
    await record(
        client,
        *(
            logged(
                f"{name}{n}",
                "ada",
                types.REACTION_LIKE,
                types.REACTION_SHARE,
                action=action,
                occurred_at=when + timedelta(seconds=n),
            )
            for n in range(60)
        ),
    )
    return (await train(client)).model_version


async def served(client: Client, accept: Callable[[Any], bool]) -> Any:
    """The first answer that is accepted, within a second."""
    async with asyncio.timeout(1.0):
        while True:
            answer = await client.recommendation.GetRecommendationParams(request())
            if accept(answer):
                return answer
            await asyncio.sleep(0.01)


def activate(client: Client, version: int | None) -> Any:
    message = mpb.ActivateModelRequest(version=version, reason="test")
    return client.models.ActivateModel(message, metadata=ADMIN)


def roll_back(client: Client) -> Any:
    return client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)


async def export(client: Client, version: int = 0) -> bytes:
    stream = client.models.ExportModel(mpb.ExportModelRequest(version=version), metadata=ADMIN)
    return b"".join([piece.chunk async for piece in stream])


def send(client: Client, data: bytes, *, active: bool = False, size: int = 1000) -> Any:
    async def pieces() -> AsyncIterator[mpb.ImportModelRequest]:
        for start in range(0, len(data), size):
            yield mpb.ImportModelRequest(chunk=data[start : start + size], activate=active)

    return client.models.ImportModel(pieces(), metadata=ADMIN)


async def test_there_is_no_model_yet(client: Client) -> None:
    listed = await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)
    assert listed == mpb.ListModelsResponse()
    for call in (
        client.models.GetModel(mpb.GetModelRequest(), metadata=ADMIN),
        client.models.GetModel(mpb.GetModelRequest(version=7), metadata=ADMIN),
        activate(client, 7),
        client.models.ExportModel(mpb.ExportModelRequest(), metadata=ADMIN).read(),
    ):
        assert (await failure_of(call)).code == grpc.StatusCode.NOT_FOUND
    failure = await failure_of(roll_back(client))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOTHING_TO_ROLL_BACK",
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (mpb.ActivateModelRequest(), "version"),
        (mpb.ActivateModelRequest(version=-1), "version"),
        (mpb.ActivateModelRequest(version=0, reason="x" * 501), "reason"),
        (mpb.ActivateModelRequest(version=0, reason="\x00"), "reason"),
    ],
)
async def test_bad_activations(client: Client, message: Any, field: str) -> None:
    failure = await failure_of(client.models.ActivateModel(message, metadata=ADMIN))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {field}


async def test_versions_are_activated_and_rolled_back(
    client: Client, db: asyncpg.Connection
) -> None:
    first = await version_trained(client, "a", (1, 1, 1))
    second = await version_trained(client, "b", (3, 3, 3))
    await served(client, lambda answer: answer.model_version == second)

    model = (await client.models.GetModel(mpb.GetModelRequest(), metadata=ADMIN)).model
    assert (model.version, model.active, model.parent_version) == (second, True, first)
    assert model.statistics.total_state_actions == 2
    assert model.statistics.total_updates == 120
    assert model.statistics.max_q_value > 1.0
    assert model.hyperparameters.discount_factor == 0.95
    assert (model.algorithm, model.origin) == ("q_learning", mpb.MODEL_ORIGIN_TRAINED)
    assert len(model.checksum) == 64
    assert model.stored_bytes < 1_000_000

    listed = await client.models.ListModels(mpb.ListModelsRequest(page_size=1), metadata=ADMIN)
    assert [m.version for m in listed.models] == [second]
    assert (listed.active_version, listed.serving_version) == (second, second)
    listed = await client.models.ListModels(
        mpb.ListModelsRequest(page_token=listed.next_page_token), metadata=ADMIN
    )
    assert [m.version for m in listed.models] == [first]

    back = await roll_back(client)
    assert (back.active_version, back.previous_version) == (first, second)
    await served(client, lambda answer: answer.model_version == first)
    back = await roll_back(client)
    assert (back.active_version, back.previous_version) == (0, first)
    await served(client, lambda a: a.fallback_reason == pb.FALLBACK_REASON_NO_MODEL)
    assert (await failure_of(roll_back(client))).reason == "NOTHING_TO_ROLL_BACK"

    forth = await activate(client, second)
    assert (forth.active_version, forth.previous_version) == (second, 0)
    await served(client, lambda answer: answer.model_version == second)
    await activate(client, first)
    assert (await roll_back(client)).active_version == second
    assert (await roll_back(client)).active_version == 0
    # The record of what was served stays whole.
    assert await db.fetchval("SELECT count(*) FROM model_activations") == 8


async def test_activating_the_active_version_changes_nothing(
    client: Client, db: asyncpg.Connection
) -> None:
    version = await version_trained(client, "a", (1, 1, 1))
    again = await activate(client, version)
    assert (again.active_version, again.previous_version) == (version, version)
    assert (await roll_back(client)).active_version == 0


async def test_a_run_may_leave_its_version_inactive(client: Client) -> None:
    await record(client, *(logged(f"i{n}", "ada", types.REACTION_LIKE) for n in range(5)))
    run = await train(client, activate=False)
    listed = await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)
    assert (listed.active_version, listed.models[0].version) == (0, run.model_version)


async def test_a_table_survives_export_and_import(client: Client, db: asyncpg.Connection) -> None:
    version = await version_trained(client, "a", (1, 1, 1))
    data = await export(client)
    table = json.loads(data)
    assert table["q_table"][SMALL_KEY].keys() == {"('low', 'focused', 'familiar')"}
    assert table["visit_counts"][SMALL_KEY] == {"('low', 'focused', 'familiar')": 60}

    model = (await send(client, data, active=True)).model
    assert (model.origin, model.active) == (mpb.MODEL_ORIGIN_IMPORTED, True)
    one, other = await load_table(db, version), await load_table(db, model.version)
    assert np.array_equal(one.q, other.q)
    assert np.array_equal(one.visits, other.visits)
    await served(client, lambda answer: answer.model_version == model.version)


class TestTheSeedsSpace:
    """With the bins that a server has by default."""

    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return in_process(database_url, tmp_path, gates="report")

    async def test_the_seeds_own_file_is_a_warm_start(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        actions = {"('high', 'focused', 'mixed')": 1.5, "('low', 'focused', 'mixed')": -0.5}
        seed = json.dumps({SEED_KEY: actions})
        model = (await send(client, seed.encode(), active=True)).model
        answer = await served(client, lambda a: a.model_version == model.version)
        assert answer.action == types.Action(energy=3, diversity=1, novelty=2)
        version = await version_trained(client, "later", (1, 1, 1))
        trained = await client.models.GetModel(mpb.GetModelRequest(version=version), metadata=ADMIN)
        assert trained.model.parent_version == model.version
        assert trained.model.statistics.coverage == pytest.approx(1 / 300_000)
        assert (await load_table(db, version)).q[SEED_STATE, 19] == np.float32(1.5)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (b"{}", "an object without states is no model"),
        (b'{"q_table": {}, "q_table": {}}', "q_table: this key is there twice"),
        (b'{"q_table": {"a": %s}}' % (b"9" * 5000), "q_table['a']: no such state"),
        (b'{"q_table": {"(1, 2)": {}}}', "(1, 2)"),
        (b"{\"(9, 3, 2, 4, 1, 'music', 'calm', 'evening')\": {}}", "(9, 3"),
        (json.dumps({SEED_KEY: {"('loud',)": 1.0}}).encode(), "('loud',)"),
        (json.dumps({SEED_KEY: {"('low', 'focused', 'mixed')": None}}).encode(), "None"),
        (json.dumps({SEED_KEY: {"('low', 'focused', 'mixed')": float("nan")}}).encode(), "nan"),
        (b'{"q_table": {}, "space": {"bins": 99}}', "space"),
        (b'{"q_table": {}, "format": "other/9"}', "format"),
        (
            b'{"q_table": {}, "hyperparameters": {"learning_rate": 7}}',
            "hyperparameters: learning_rate must be above 0 and up to 1, not 7",
        ),
        (
            b'{"q_table": {}, "hyperparameters": {"learning_rate": null}}',
            "hyperparameters['learning_rate']: must be a number, not None",
        ),
        (
            b'{"q_table": {}, "space": {"bins": 2, "content_types": ["music"], '
            b'"moods": ["bored"], "times_of_day": ["night"]}}',
            "bored",
        ),
    ],
)
async def test_bad_files_are_named_and_not_stored(data: bytes, named: str) -> None:
    """The database is not even asked."""
    said = io.StringIO()
    settings = Settings(database_url="postgresql:///nowhere")
    assert await import_table(settings, io.BytesIO(data), said) == INVALID_FILE
    assert named in said.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\xff\xfe", "JSON"),
        (b'{"q_table": {"a": %s}}' % (b"9" * 5000), "q_table['a']: no such state"),
        (b'{"q_table": {"\\ud800": {}}}', "no such state"),
    ],
)
async def test_the_caller_is_told_what_is_wrong_with_a_file(
    client: Client, db: asyncpg.Connection, data: bytes, named: str
) -> None:
    failure = await failure_of(send(client, data))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert named in failure.violations["chunk"]
    assert await db.fetchval("SELECT count(*) FROM model_versions") == 0


async def test_a_table_is_taken_where_another_algorithm_learns(
    database_url: str, db: asyncpg.Connection
) -> None:
    settings = Settings(
        database_url=database_url,
        algorithm="boltzmann",
        algorithm_parameters="temperature=0.2",
        learning_rate=0.3,
    )
    given = {"temperature": 0.5, "discount_factor": 0.5}
    seed = {"q_table": {SEED_KEY: {"('low', 'focused', 'mixed')": 1.5}}, "hyperparameters": given}
    said = io.StringIO()
    assert await import_table(settings, io.BytesIO(json.dumps(seed).encode()), said) == 0
    row = await db.fetchrow("SELECT * FROM model_versions WHERE version = $1", int(said.getvalue()))
    assert row["algorithm"] == "q_learning"
    stored = json.loads(row["hyperparameters"])
    assert (stored["learning_rate"], stored["discount_factor"]) == (0.3, 0.5)
    assert "temperature" not in stored


async def test_pieces_have_a_largest_size(client: Client, db: asyncpg.Connection) -> None:
    failure = await failure_of(send(client, b" " * (1024 * 1024 + 1), size=2**21))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_import_of_another_space_cannot_be_served(client: Client) -> None:
    data = json.dumps({"space": StateSpace(bins=3).to_dict(), "q_table": {}}).encode()
    model = (await send(client, data)).model
    assert model.bins == 3
    failure = await failure_of(activate(client, model.version))
    assert failure.reason == "MODEL_INCOMPATIBLE"


async def test_a_corrupt_version_is_not_activated(client: Client, db: asyncpg.Connection) -> None:
    good = await version_trained(client, "a", (1, 1, 1))
    bad = await version_trained(client, "b", (3, 3, 3))
    await activate(client, good)
    await db.execute(
        "UPDATE model_versions SET policy = set_byte(policy, 9, get_byte(policy, 9) # 1) "
        "WHERE version = $1",
        bad,
    )
    failure = await failure_of(activate(client, bad))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "MODEL_CORRUPT",
    )
    answer = await served(client, lambda a: a.model_version == good)
    assert answer.action == types.Action(energy=1, diversity=1, novelty=1)
