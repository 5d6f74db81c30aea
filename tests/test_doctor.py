"""`recparams doctor`: each thing that can be wrong is told, with what mends it."""

import re
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from recparams.v1.evaluation_pb2 import LearningGain
from recparams_server.app import App
from recparams_server.cli import main
from recparams_server.diagnosis import data, database, learning
from recparams_server.diagnosis.examination import examine
from recparams_server.diagnosis.findings import Finding, is_healthy
from recparams_server.settings import Settings
from recparams_server.store import learning_gain
from tests.faults import SMALL
from tests.support import ROOT, Client, in_process, train
from tests.test_cli import run
from tests.trust import likes_high_energy, live, serves, set_rollout

PEOPLE = [f"user-{n}" for n in range(120)]
CHECKS = [
    *("server", "clock of server", "pooler", "database", "clock of database", "migrations"),
    *("storage", "data volume", "decision tokens", "profiles", "reward sparsity", "exploration"),
    *("training", "divergence", "versions", "active version", "sample ratio", "learning gain"),
]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, "watch_seconds": 3600})


async def test_a_service_that_works(
    app: App, client: Client, database_url: str, tmp_path: Path
) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client)
    # The space of `SMALL`.
    where = {"RECPARAMS_DATABASE_URL": database_url, "RECPARAMS_BINS": "2"}
    where |= {"RECPARAMS_CONTENT_TYPES": "music", "RECPARAMS_TIMES_OF_DAY": "evening"}
    where["RECPARAMS_ADDRESS"] = f"127.0.0.1:{app.port}"
    told = await run("doctor", "--json", **where)
    assert told.code == 0, told.out
    assert told.json["healthy"] is True
    findings = told.json["findings"]
    assert [one["check"] for one in findings] == CHECKS
    assert all(set(one) == {"check", "level", "said", "mend"} for one in findings)
    assert {one["level"] for one in findings if one["check"] != "exploration"} == {"ok"}
    strict = await run("doctor", "--strict", **where)
    assert strict.code == 1, "nothing explores"
    assert "WARNING  exploration" in strict.out
    assert "-> recparams serve --exploration posterior" in strict.out
    assert "0 problems, 1 warnings, 17 checks passed" in strict.out


async def test_without_server_or_database(database_url: str, tmp_path: Path) -> None:
    nobody = {"RECPARAMS_ADDRESS": "127.0.0.1:1", "RECPARAMS_DATA_DIR": str(tmp_path / "none")}
    away = await run("doctor", **nobody, RECPARAMS_DATABASE_URL="postgresql://u@127.0.0.1:1/x")
    assert away.code == 4
    assert "PROBLEM  server" in away.out
    assert "-> recparams serve" in away.out
    assert "PROBLEM  database" in away.out
    assert "RECPARAMS_DATABASE_URL" in away.out
    no_database = await run("doctor", "--json", **nobody, RECPARAMS_DATABASE_URL="")
    assert no_database.code == 1
    assert [one["level"] for one in no_database.json["findings"]] == ["problem", "problem"]
    bad = await run("doctor", RECPARAMS_BINS="many")
    assert bad.code == 2
    assert "bins" in bad.err


async def test_schemas_that_are_not_this_releases(
    db: asyncpg.Connection, database_url: str, settings: Settings
) -> None:
    async def last() -> Finding:
        return [finding async for finding in examine(settings, database_url)][-1]

    await db.execute("UPDATE alembic_version SET version_num = '0001'")
    older = await last()
    assert (older.check, older.level, older.mend) == ("migrations", "problem", "recparams migrate")
    await db.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "newer release" in (await last()).said
    await db.execute("DROP TABLE alembic_version")
    assert "has no schema" in (await last()).said


def test_clocks() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    heard = now + timedelta(seconds=1)

    def at(seconds: float) -> str:
        return database.skew(now + timedelta(seconds=seconds), now, heard, "database").level

    assert [at(-1.0), at(0.5), at(2.5)] == ["ok"] * 3
    assert [at(-10), at(10), at(-1000), at(1000)] == [*["warning"] * 2, *["problem"] * 2]


def test_health_is_without_problems_and_strictly_without_warnings() -> None:
    ok, warning, problem = (Finding("x", level, "") for level in ("ok", "warning", "problem"))
    assert is_healthy([])
    assert is_healthy([ok, warning])
    assert not is_healthy([ok, warning], strict=True)
    assert not is_healthy([ok, problem])


async def test_empty_and_old_databases(db: asyncpg.Connection, settings: Settings) -> None:
    now = datetime.now(UTC)
    (nothing,) = await data.check_interactions(db, now)
    assert (nothing.check, nothing.level) == ("data volume", "warning")
    assert "recparams simulate" in nothing.mend
    assert (await learning.check_training(db)).level == "ok"
    assert (await learning.check_divergence(db)).level == "ok"
    assert (await data.check_storage(db, settings, now)).level == "ok"
    long_ago = now - settings.retention - timedelta(weeks=3)
    await db.execute("SELECT ensure_interactions_partition($1)", long_ago)
    late = await data.check_storage(db, settings, now)
    assert late.level == "warning"
    assert "past the retention of 26 weeks" in late.said


Check = Callable[[asyncpg.Connection, Settings], Coroutine[Any, Any, Finding | list[Finding]]]


async def _data(db: asyncpg.Connection, settings: Settings) -> list[Finding]:
    return await data.check_interactions(db, datetime.now(UTC))


async def _training(db: asyncpg.Connection, settings: Settings) -> Finding:
    return await learning.check_training(db)


async def _divergence(db: asyncpg.Connection, settings: Settings) -> Finding:
    return await learning.check_divergence(db)


async def _gain(db: asyncpg.Connection, settings: Settings) -> Finding:
    return await learning.check_gain(db)


_GATE = """
UPDATE system_tasks SET metadata = jsonb_set(metadata, '{training,gates}', '[{
    "name": "q_bound", "value": %s, "threshold": 66.0, "passed": %s, "explanation": "large"}]')
"""
BROKEN: tuple[tuple[Check, str, str, str, str], ...] = (
    (
        _data,
        "UPDATE interactions SET recorded_at = now() - interval '3 days'",
        *("data volume", "warning", "callers of RecordInteractions"),
    ),
    (
        _data,
        "UPDATE interactions SET source = NULL, activation_id = NULL",
        *("decision tokens", "warning", "decision_token"),
    ),
    (
        _data,
        "UPDATE interactions SET openness = NULL",
        *("profiles", "warning", "PutPersonalityProfiles"),
    ),
    (
        _data,
        "UPDATE interactions SET reactions = 32",
        *("reward sparsity", "warning", "RECPARAMS_REWARD_IMPRESSION"),
    ),
    (_data, "SELECT 1", *("exploration", "warning", "--exploration posterior")),
    (_data, "UPDATE interactions SET propensity = 0.5", *("exploration", "ok", "")),
    (
        _data,
        "UPDATE interactions SET model_version = 1, source = 3",
        *("coverage", "warning", "RECPARAMS_BINS=3"),
    ),
    (
        _data,
        "UPDATE interactions SET model_version = 1, source = 1",
        *("coverage", "ok", ""),
    ),
    (
        _training,
        "UPDATE system_tasks SET status = 'failed', outcome = NULL, error = 'the disk is full'",
        *("training", "problem", "recparams runs show 1"),
    ),
    (
        _training,
        """
        INSERT INTO system_tasks (task_name, status, outcome, request_id, finished_at, metadata)
        SELECT task_name, status, 'refused', n::text, finished_at, metadata
        FROM system_tasks, generate_series(1, 3) AS n
        """,
        *("training", "warning", "recparams runs show"),
    ),
    (
        _training,
        """
        UPDATE system_tasks SET finished_at = now() - interval '9 days', metadata =
            jsonb_set(metadata, '{training,interactions_waiting}', '500')
        """,
        *("training", "warning", "--schedule"),
    ),
    (_divergence, _GATE % (60, "true"), *("divergence", "warning", "--learning-rate")),
    (_divergence, _GATE % (70, "false"), *("divergence", "problem", "--learning-rate")),
    (_divergence, _GATE % (20, "true"), *("divergence", "ok", "")),
    (
        learning.check_versions,
        "UPDATE model_versions SET policy = 'nonsense'",
        *("active version", "problem", "recparams models rollback"),
    ),
    (
        learning.check_versions,
        "UPDATE model_versions SET q_table = 'nonsense'",
        *("versions", "problem", "recparams models rollback"),
    ),
    (
        learning.check_versions,
        """
        UPDATE model_versions SET q_table = 'nonsense';
        INSERT INTO model_activations (version) VALUES (NULL)
        """,
        *("versions", "problem", "recparams train --wait --mode rebuild"),
    ),
    (
        learning.check_versions,
        """
        INSERT INTO model_versions (
            origin, algorithm, space, hyperparameters, metrics, q_table, q_table_checksum, policy,
            policy_checksum
        ) SELECT 'imported', algorithm, space, hyperparameters, metrics, q_table, q_table_checksum,
            'nonsense', policy_checksum
        FROM model_versions
        """,
        *("versions", "problem", "recparams models delete 2"),
    ),
    (
        learning.check_versions,
        "INSERT INTO model_activations (version) VALUES (NULL)",
        *("active version", "warning", "recparams train --wait"),
    ),
    (
        learning.check_versions,
        "UPDATE model_versions SET created_at = now() - interval '40 days'",
        *("active version", "warning", "recparams train --wait"),
    ),
)


async def test_each_trouble_is_told_with_what_mends_it(
    client: Client, db: asyncpg.Connection, settings: Settings
) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client)
    for check, trouble, name, level, mend in BROKEN:
        undo = db.transaction()
        await undo.start()
        await db.execute(trouble)
        found = await check(db, settings)
        findings = found if isinstance(found, list) else [found]
        await undo.rollback()
        one = next(finding for finding in findings if finding.check == name)
        assert (one.level, mend in one.mend) == (level, True), (trouble, one)
    other = settings.model_copy(update={"bins": 3})
    *_, active = await learning.check_versions(db, other)
    assert "another state space" in active.said
    assert active.mend == "recparams train --wait --mode rebuild"


async def test_arms_without_their_shares_and_learning_that_harms(
    client: Client, db: asyncpg.Connection, settings: Settings
) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client)
    assert (await learning.check_rollout(db, settings)).said == "no arms are compared"
    await set_rollout(client, version=1, percent=50)
    await serves(client, [f"watched-{n}" for n in range(600)])
    assert "too few to tell" in (await learning.check_rollout(db, settings)).said
    await live(client, PEOPLE, likes_high_energy)
    assert (await learning.check_rollout(db, settings)).level == "ok"
    await db.execute("DELETE FROM interactions WHERE policy_arm = 1 AND activation_id IS NOT NULL")
    few = settings.model_copy(update={"experiment_burn_in": 20})
    lost = await learning.check_rollout(db, few)
    assert lost.level == "problem"
    assert "rl 0 (expected 50.0%)" in lost.said
    assert "not to be trusted" in lost.said

    sides = {"learned_users": 50, "rule_based_users": 50, "confidence": 0.95}
    await learning_gain.put(db, LearningGain(difference=-0.2, low=-0.3, high=-0.1, **sides))
    harm = await learning.check_gain(db)
    assert (harm.level, "recparams models rollback" in harm.mend) == ("problem", True)
    await learning_gain.put(db, LearningGain(difference=0.2, low=0.1, high=0.3, **sides))
    assert (await learning.check_gain(db)).level == "ok"


def test_what_mends_it_can_be_run() -> None:
    """The commands that findings name are commands, with options that there are."""
    text = "".join(
        path.read_text() for path in (ROOT / "server/recparams_server/diagnosis").glob("*.py")
    )
    commands = set(
        re.findall(r"recparams ((?:models |rollout |runs )?[a-z]+)((?: --[a-z-]+)*)", text)
    )
    assert len(commands) > 5
    for command, options in commands:
        told = CliRunner().invoke(main, [*command.split(), "--help"])
        assert told.exit_code == 0, command
        assert all(option in told.output for option in options.split()), (command, options)
