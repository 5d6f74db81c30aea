"""A tuning through the real service: a stream with progress, one at a time, that can be stopped."""

import asyncio
import html
import json
import os
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.json_format import ParseDict

from recparams.v1 import training_pb2 as tpb
from recparams.v1 import tuning_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_server.app import App
from recparams_server.cli.tuning_output import settings_lines, table_rows, tuning_sentence
from recparams_server.jobs.tuning import MOST_INTERACTIONS
from recparams_server.settings import Settings
from recparams_server.store.locks import TUNING_LOCK, try_lock
from recparams_server.store.tuning import QUERY, people_below
from tests.faults import SMALL, eventually, job_processes
from tests.support import ADMIN, ADMIN_KEY, Client, failure_of, in_process
from tests.test_cli import run
from tests.trust import likes_high_energy, live

PEOPLE = [f"user-{n}" for n in range(400)]
CALM = {"mood": types.MOOD_CALM}
TIMID = 1e6
"""A caution with which the rules stay in force for ever."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    # Few contexts: on nine bins a trait there are 59,049 states of each.
    small = {**SMALL, "moods": ("calm",), "content_types": ("music",), "times_of_day": ("evening",)}
    # By some draws another learner is as good as less caution, or better.
    changes = {"exploration": 0.5, "caution": TIMID, "serving_bins": 3, "random_seed": 1}
    return in_process(database_url, tmp_path, **{**small, **changes})


async def tune(client: Client, **fields: Any) -> list[pb.TuneResponse]:
    call = client.training.Tune(pb.TuneRequest(**fields), metadata=ADMIN)
    return [response async for response in call]


async def versions_and_plans(db: asyncpg.Connection) -> list[int]:
    tables = "model_versions", "model_activations", "system_tasks"
    return [await db.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def test_a_tuning_finds_what_is_better_and_changes_nothing(
    app: App, client: Client, db: asyncpg.Connection, tmp_path: Path
) -> None:
    for _ in range(12):
        await live(client, PEOPLE, likes_high_energy, **CALM)
    before = await versions_and_plans(db)
    *updates, last = await tune(client)
    assert [update.progress for update in updates] == sorted(u.progress for u in updates)
    assert updates[0].stage == "reading"
    assert not any(update.HasField("tuning") for update in updates)
    assert (last.stage, last.progress) == ("done", 1.0)
    found = last.tuning
    assert {update.stage for update in updates[1:]} == {one.name for one in found.configurations}
    assert (found.interactions, found.read) == (4800, 4800)
    assert found.learned + found.valued == 4800
    assert found.valued_users == len(PEOPLE)
    assert found.period_start.seconds < found.split_at.seconds <= found.period_end.seconds
    assert found.outcome == pb.TUNING_OUTCOME_BETTER
    chosen = found.configurations[found.chosen]
    assert chosen.verdict == pb.TUNING_VERDICT_BETTER
    assert chosen.low > 0.2
    assert "caution" in chosen.settings
    assert "exploration" not in chosen.settings
    assert found.configurations[0].verdict == pb.TUNING_VERDICT_PRESENT
    assert before == await versions_and_plans(db)
    evaluated = await client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
    assert evaluated.tuning == found

    given = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}", "RECPARAMS_ADMIN_KEY": ADMIN_KEY}
    outcome = await run("tune", "--chart", "tuning.png", cwd=tmp_path, **given)
    assert outcome.code == 0, outcome.err
    assert f"Use {chosen.name}: worth {chosen.difference:+.3f}" in outcome.out
    assert f"RECPARAMS_CAUTION={chosen.settings['caution']}" in outcome.out.splitlines()
    assert "100% done" in outcome.err
    assert (tmp_path / "tuning.png").read_bytes().startswith(b"\x89PNG")
    outcome = await run("evaluate", "--html", "page.html", cwd=tmp_path, **given)
    assert outcome.code == 0, outcome.err
    page = html.unescape((tmp_path / "page.html").read_text())
    assert f"Use {chosen.name}: worth" in page


async def test_without_exploration_it_cannot_tell(
    app: App, client: Client, db: asyncpg.Connection, tmp_path: Path
) -> None:
    await live(client, PEOPLE[:50], likes_high_energy, **CALM)
    await db.execute("UPDATE interactions SET propensity = 1, action = 0")
    given = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}", "RECPARAMS_ADMIN_KEY": ADMIN_KEY}
    outcome = await run("tune", "--json", "--chart", "tuning.none", cwd=tmp_path, **given)
    assert outcome.code == 1
    assert "recparams: tuning.none: " in outcome.err
    told = json.loads(outcome.out)
    assert (told["outcome"], told["chosen"]) == ("TUNING_OUTCOME_UNDECIDED", 0)
    assert "value" not in told["configurations"][0]
    found = ParseDict(told, pb.Tuning())
    assert tuning_sentence(found).startswith("Cannot tell, so keep the present settings")
    assert found.configurations[0].reason in tuning_sentence(found)
    assert settings_lines(found) == []
    assert {verdict for *_, verdict in table_rows(found)} == {"present", "too rare"}


async def test_there_is_one_at_a_time_and_its_caller_may_stop_it(
    client: Client, db: asyncpg.Connection
) -> None:
    await live(client, PEOPLE, likes_high_energy, **CALM)

    async def ended() -> bool:
        return not any(job.name().startswith("tune") for job in job_processes(os.getpid()))

    async def free() -> bool:
        return await try_lock(db, TUNING_LOCK)

    async with db.transaction():
        # It reads nothing meanwhile, and is not done before it is stopped.
        await db.execute("LOCK TABLE interactions")
        call = client.training.Tune(pb.TuneRequest(), metadata=ADMIN)
        assert (await call.read()).stage == "reading"
        failure = await failure_of(tune(client))
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "TUNING_ALREADY_RUNNING"
        assert not await ended()
        call.cancel()
        await eventually(ended)
    await eventually(free)
    assert await db.fetchval("SELECT count(*) FROM tuning") == 0


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"days_back": 0}, "days_back"), ({"confidence": 1.0}, "confidence")],
)
async def test_bad_requests_are_refused(client: Client, fields: dict[str, Any], name: str) -> None:
    failure = await failure_of(tune(client, **fields))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {name}


async def test_of_very_many_interactions_those_of_some_people_are_read(
    client: Client, db: asyncpg.Connection
) -> None:
    assert people_below(MOST_INTERACTIONS, MOST_INTERACTIONS) == 65536
    await asyncio.gather(*(live(client, PEOPLE, likes_high_energy, **CALM) for _ in range(2)))
    below = people_below(800, 400)
    span = "now() - interval '1 day'", "now() + interval '1 day'"
    drawn = await db.fetch(
        QUERY.replace("$1", span[0]).replace("$2", span[1]).replace("$3", str(below))
    )
    people: dict[int, int] = {}
    for row in drawn:
        people[row["user_key"]] = people.get(row["user_key"], 0) + 1
    assert 140 <= len(people) <= 260
    assert set(people.values()) == {2}
