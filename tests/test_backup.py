"""Backup and restore with the very commands that docs/operations.md shows."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from tests.faults import (
    SMALL,
    OwnPostgres,
    assert_same,
    batch,
    learned,
    stored_table,
    trained_state,
    updates_of,
)
from tests.processes import communicate
from tests.support import ADMIN, ROOT, Client, connect, record, train, wait_serving
from tests.support import request as ask

PEOPLE = [f"user-{n}" for n in range(12)]


def commands(heading: str) -> str:
    """The commands under a heading of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text()
    section = re.split(r"\n#+ ", text.partition(f"# {heading}\n")[2])[0]
    return "\n".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


async def shell(script: str, folder: Path, programs: Path, **variables: str) -> None:
    """Runs commands in a folder, with Postgres' programs at hand."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await communicate(process)
    assert process.returncode == 0, output.decode()


async def served(client: Client) -> list[tuple[Any, ...]]:
    """What people are answered, tokens left out: they differ from call to call."""
    return [
        (one.params.SerializeToString(), one.model_version, one.policy_arm, one.source)
        for user in PEOPLE
        for mood in types.Mood.values()
        for one in [await client.recommendation.GetRecommendationParams(ask(user, mood=mood))]
    ]


async def versions(client: Client) -> mpb.ListModelsResponse:
    return await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)


def reaction(interaction_id: str, token: bytes) -> pb.Interaction:
    return pb.Interaction(
        interaction_id=interaction_id,
        user_id="ada",
        decision_token=token,
        reactions=[types.REACTION_LIKE],
    )


async def test_a_restored_database_goes_on_as_the_one_that_was_lost(
    postgres: Any,
    database_url: str,
    db: asyncpg.Connection,
    start_server: Any,
    tmp_path: Path,
    private_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    trained, waiting = batch(0), batch(1)
    lost = start_server(**SMALL)
    async with connect(lost.target) as client:
        await wait_serving(client)
        await record(client, *trained)
        assert (await train(client)).model_version == 1
        await record(client, *waiting)
        token = (await client.recommendation.GetRecommendationParams(ask())).decision_token
        before = await versions(client), await served(client), await trained_state(db)
        await shell(commands("Back up"), tmp_path, postgres.bin_path, DATABASE_URL=database_url)
    lost.kill()
    for table in ("interactions", "model_versions", "users", "secrets"):
        await db.execute(f"DROP TABLE {table} CASCADE")

    own = OwnPostgres(private_folder / "new")
    request.addfinalizer(own.stop)
    url = own.uri("recparams")
    await shell(
        commands("Restore"),
        tmp_path,
        postgres.bin_path,
        NEW_SERVER_URL=own.uri("postgres"),
        NEW_DATABASE_URL=url,
    )
    restored = await asyncpg.connect(url)
    async with connect(start_server(database_url=url, **SMALL).target) as client:
        await wait_serving(client)
        after = await versions(client), await served(client), await trained_state(restored)
        assert after == before
        assert before[0].serving_version == 1

        assert (await record(client, *trained, *waiting)).duplicates == len(trained) + len(waiting)
        run = await train(client)
        assert (run.model_version, run.parent_version) == (2, 1)
        assert run.interactions_trained == len(waiting)
        assert_same(await stored_table(restored, 2), learned(trained + waiting))

        assert (await record(client, reaction("late", token))).recorded == 1
        assert (await train(client)).interactions_trained == 1
        assert await updates_of(restored, 3) == len(trained) + len(waiting) + 1
    await restored.close()
