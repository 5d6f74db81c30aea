"""Versions compared and deleted, over a real channel and from the command line."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import zstandard

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import rollout_pb2 as rpb
from recparams_rl.action import ACTIONS
from recparams_rl.rules import rule_table
from recparams_server.app import App
from recparams_server.settings import Settings
from recparams_server.store import deletion
from recparams_server.store.models import checksum
from tests.faults import SMALL
from tests.support import ADMIN, Client, failure_of, in_process, train
from tests.test_cli import run
from tests.trust import likes_high_energy, live, set_rollout

PEOPLE = [f"user-{n}" for n in range(80)]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, "watch_seconds": 3600})


async def diff(client: Client, *versions: int | None, **fields: Any) -> mpb.DiffModelsResponse:
    before, after = versions
    request = mpb.DiffModelsRequest(version=before, other_version=after, **fields)
    return await client.models.DiffModels(request, metadata=ADMIN)


async def delete(client: Client, *versions: int, **fields: Any) -> list[int]:
    request = mpb.DeleteModelsRequest(versions=versions, **fields)
    return list((await client.models.DeleteModels(request, metadata=ADMIN)).versions)


async def stored(db: asyncpg.Connection) -> list[int]:
    return [row[0] for row in await db.fetch("SELECT version FROM model_versions ORDER BY 1")]


async def test_where_two_versions_differ(
    app: App, client: Client, db: asyncpg.Connection, settings: Settings
) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client)
    space = settings.serving_space()
    # Another one, which has high energy for music and else the rules.
    rules = rule_table(space)
    music = range(space.n_contexts // 3)
    lively = next(n for n, action in enumerate(ACTIONS) if action.energy == "high")
    at_music = [state % space.n_contexts in music for state in range(space.n_states)]
    table = bytes(lively if music else int(a) for music, a in zip(at_music, rules, strict=True))
    await add_version(db, table)

    found = await diff(client, 0, 2)
    assert (found.version, found.other_version, found.interactions) == (0, 2, len(PEOPLE))
    assert found.people == len(PEOPLE)
    assert found.states == space.n_states
    expected = sum(a != b for a, b in zip(table, rules.tobytes(), strict=True))
    assert found.changed_states == expected > 0
    parts = {(one.dimension, one.value): one for one in found.segments}
    assert parts["content_type", "music"].changed_people == found.changed_people > 0
    assert {one.after.energy for one in found.changes} == {3}
    assert sum(one.interactions for one in found.changes) == found.changed_interactions
    assert (await diff(client, 2, 2)).changed_people == 0
    assert (await diff(client, 0, 1, days=1)).interactions == len(PEOPLE)

    await db.execute("UPDATE interactions SET openness = NULL WHERE id % 2 = 0")
    partly = await diff(client, 0, 2)
    assert partly.interactions + partly.unknown_state == len(PEOPLE)
    assert partly.unknown_state > 0

    where = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}"}
    shown = await run("models", "diff", "0", "2", **where)
    assert shown.code == 0
    assert "version 2 against the hand-written rules" in shown.out
    assert f"({partly.changed_people:,} of {partly.people:,}) of the people" in shown.out
    assert "content type" in shown.out
    told = await run("models", "diff", "0", "2", "--json", **where)
    assert len(told.json["segments"]) == len(partly.segments)

    for versions, fields, named in (
        ((None, 2), {}, "version: is required"),
        ((1, -2), {}, "other_version: is required"),
        ((1, 2), {"days": 0}, "days: must be from 1 to 3650"),
    ):
        failed = await failure_of(diff(client, *versions, **fields))
        assert failed.code == grpc.StatusCode.INVALID_ARGUMENT
        assert named in failed.message
    assert (await failure_of(diff(client, 1, 77))).code == grpc.StatusCode.NOT_FOUND
    await db.execute("UPDATE model_versions SET policy = 'nonsense' WHERE version = 1")
    assert (await failure_of(diff(client, 1, 2))).reason == "MODEL_CORRUPT"


async def add_version(db: asyncpg.Connection, actions: bytes) -> None:
    """Stores a copy of version 1 with other actions."""
    blob = zstandard.ZstdCompressor().compress(actions + bytes(len(actions)))
    row = await db.fetchrow("SELECT space::text FROM model_versions WHERE version = 1")
    space = json.dumps(json.loads(row["space"]), sort_keys=True)
    await db.execute(
        """
        INSERT INTO model_versions (
            origin, algorithm, space, hyperparameters, metrics, q_table, q_table_checksum,
            policy, policy_checksum, main_line
        ) SELECT 'imported', algorithm, space, hyperparameters, metrics, q_table, q_table_checksum,
            $1, $2, false
        FROM model_versions WHERE version = 1
        """,
        blob,
        checksum(space, blob),
    )


async def test_versions_in_use_are_kept(app: App, client: Client, db: asyncpg.Connection) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client, activate=False)
    for _ in range(7):
        await db.execute(
            """
            INSERT INTO model_versions (
                origin, algorithm, space, hyperparameters, metrics, q_table, q_table_checksum,
                policy, policy_checksum, main_line, parent_version
            ) SELECT 'imported', algorithm, space, hyperparameters, metrics, q_table,
                q_table_checksum, policy, policy_checksum, false, 1
            FROM model_versions WHERE version = 1
            """
        )
    for version in (2, 3):
        await set_rollout(client, version=version, percent=100)
    await set_rollout(client, version=4, percent=50)
    shadow = rpb.SetShadowRequest(version=5)
    await client.rollout.SetShadow(shadow, metadata=ADMIN)

    for version, use in (
        (1, deletion.TRAINED_ON),
        (2, deletion.ROLLBACKS),
        (3, deletion.SERVED),
        (4, deletion.SERVED),
        (5, deletion.SHADOWED),
    ):
        failed = await failure_of(delete(client, 6, version))
        assert (failed.reason, failed.message) == ("MODEL_IN_USE", f"version {version} {use}")
    assert await stored(db) == list(range(1, 9)), "all of a call or nothing"
    missing = await failure_of(delete(client, 6, 99))
    assert (missing.code, missing.message) == (
        grpc.StatusCode.NOT_FOUND,
        "there is no model version 99",
    )
    for bad in (delete(client), delete(client, 6, keep_newest=1), delete(client, keep_newest=0)):
        assert (await failure_of(bad)).code == grpc.StatusCode.INVALID_ARGUMENT

    assert await delete(client, 6, dry_run=True) == [6]
    assert 6 in await stored(db)
    where = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}"}
    done = await run("models", "delete", "6", **where)
    assert done.out.startswith("deleted 6 (")
    pruned = await run("models", "prune", "--keep", "1", "--json", **where)
    assert pruned.json["versions"] == [7]
    assert await stored(db) == [1, 2, 3, 4, 5, 8]
    # Numbers stay on record: a version that is gone from the end of the chain is no obstacle.
    await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    answer = await client.rollout.GetRollout(rpb.GetRolloutRequest(), metadata=ADMIN)
    assert answer.rollout.version == 3
    assert 4 in {one.version for one in answer.history}
    assert await delete(client, 4) == [4]
    answer = await client.rollout.GetRollout(rpb.GetRolloutRequest(), metadata=ADMIN)
    assert 4 in {one.version for one in answer.history}
    assert (await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)).models


async def test_servers_delete_old_versions_by_themselves(
    client: Client, db: asyncpg.Connection, database_url: str
) -> None:
    for _ in range(3):
        await live(client, PEOPLE, likes_high_energy)
        await train(client, activate=False)
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    try:
        assert await deletion.prune(pool, 3) == []
        assert await deletion.prune(pool, 2) == [1]
        assert await stored(db) == [2, 3]
    finally:
        await pool.close()
