"""The command line, run as an operator runs it, against a real server."""

import asyncio
import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams.v1 import types_pb2 as types
from server.app import App
from tests.support import ADMIN_KEY, ROOT, Client, environment, logged, record

SEED_OPTIONS = (
    *(
        "--mood",
        "calm",
        "--time-of-day",
        "evening",
        "--openness",
        "75",
        "--conscientiousness",
        "60",
    ),
    *("--extraversion", "40", "--agreeableness", "80", "--neuroticism", "30"),
)


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def run(*arguments: str, **variables: str) -> Outcome:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server.cli",
        *arguments,
        cwd=ROOT,
        env={**environment("unused"), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    outcome = Outcome(await process.wait(), out.decode(), err.decode())
    assert "Traceback" not in outcome.err
    return outcome


@pytest.fixture
def cli(app: App, client: Client) -> Any:
    """Runs a command against the test's server."""

    async def call(*arguments: str, **variables: str) -> Outcome:
        address = f"127.0.0.1:{app.port}"
        return await run(*arguments, **{"RECPARAMS_ADDRESS": address, **variables})

    return call


async def fill(client: Client) -> None:
    now = datetime.now(UTC)
    await record(
        client,
        *(
            logged(
                f"i{n}", "ada", types.REACTION_LIKE, occurred_at=now - timedelta(hours=2, minutes=n)
            )
            for n in range(20)
        ),
    )


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("serve",),
        ("train",),
        ("evaluate",),
        ("recommend",),
        ("runs",),
        ("runs", "list"),
        ("runs", "show"),
        ("runs", "watch"),
        ("runs", "cancel"),
        ("models",),
        ("models", "list"),
        ("models", "show"),
        ("models", "activate"),
        ("models", "rollback"),
        ("models", "export"),
        ("models", "import"),
        ("simulate",),
        ("demo",),
    ],
)
async def test_help_teaches(command: tuple[str, ...]) -> None:
    outcome = await run(*command, "--help")
    assert outcome.code == 0
    assert "Usage:" in outcome.out
    assert len(outcome.out.splitlines()) > 5


async def test_training_step_by_step(cli: Any, client: Client) -> None:
    await fill(client)
    trained = await cli("train", "--wait", "--min-interactions", "3", "--learning-rate", "0.2")
    assert trained.code == 0, trained.err
    *steps, last = [json.loads(line) for line in trained.out.splitlines()]
    assert all({"run_id", "stage", "progress"} == set(step) for step in steps)
    assert last["status"] == "TRAINING_RUN_STATUS_COMPLETED"
    assert last["interactions_trained"] == "20"
    assert last["hyperparameters"]["learning_rate"] == 0.2

    listed = await cli("runs", "list")
    assert listed.out.split()[:3] == ["run", "created", "status"]
    assert "completed" in listed.out
    assert (await cli("runs", "list", "--json")).json["runs"][0]["run_id"] == last["run_id"]
    shown = await cli("runs", "show", last["run_id"])
    assert "20 (0 waiting)" in shown.out
    again = await cli("runs", "watch", last["run_id"])
    assert again.code == 0
    ended = await cli("runs", "cancel", last["run_id"])
    assert (ended.code, ended.err.strip()) == (2, "recparams: training run 1 has ended")

    started = await cli("train", "--request-id", "r2")
    assert "training run 2 started" in started.out
    assert (await cli("runs", "watch", "2")).code == 0
    repeated = await cli("train", "--request-id", "r2", "--json")
    assert repeated.json["run_id"] == "2"


async def test_a_progress_bar_on_a_terminal(client: Client, app: App) -> None:
    await fill(client)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server.cli", "train", "--wait"),
        cwd=ROOT,
        env={
            **environment("unused", address=f"127.0.0.1:{app.port}"),
            "TERM": "xterm",
            "COLUMNS": "100",
        },
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:
            return b""

    while piece := await asyncio.to_thread(read):
        shown += piece
    os.close(ours)
    assert await process.wait() == 0
    assert b"%" in shown
    assert b"model version   1" in shown


async def test_exit_codes_of_train(
    cli: Any, client: Client, db: asyncpg.Connection, tmp_path: Path
) -> None:
    bad = await cli("train", "--days", "0")
    assert bad.code == 2
    assert bad.err.strip() == "recparams: days_back: must be from 1 to 3650, not 0"
    assert (await cli("train", "--mode", "sometimes")).code == 2
    wrong = await cli("train", "--admin-key", "nonsense")
    assert (wrong.code, wrong.err.strip()) == (7, "recparams: x-admin-key is wrong")
    missing = await cli("train", RECPARAMS_ADMIN_KEY="", RECPARAMS_DATA_DIR=str(tmp_path / "none"))
    assert missing.code == 7
    away = await cli("train", "--wait", RECPARAMS_ADDRESS="127.0.0.1:1")
    assert away.code == 4
    assert away.err.startswith("recparams: 127.0.0.1:1: ")
    assert len(away.err.splitlines()) == 1

    # The run waits for this lock when it reads where it may read up to.
    await db.execute("SELECT pg_advisory_lock_shared(7270001)")
    waiting = asyncio.create_task(cli("train", "--wait"))
    while not await db.fetchval("SELECT count(*) FROM system_tasks WHERE status = 'running'"):
        await asyncio.sleep(0.05)
    busy = await cli("train", "--wait")
    assert (busy.code, busy.err.strip()) == (
        3,
        "recparams: training run 1 is under way: watch it or wait for it",
    )
    assert (await cli("runs", "cancel", "1")).code == 0
    assert (await waiting).code == 5
    await db.execute("SELECT pg_advisory_unlock_all()")

    await fill(client)
    await db.execute("ALTER TABLE model_versions RENAME COLUMN metrics TO metrics_")
    failed = await cli("train", "--wait")
    assert failed.code == 1
    assert "metrics" in json.loads(failed.out.splitlines()[-1])["error"]


async def test_a_development_servers_key_is_found(cli: Any, client: Client, tmp_path: Path) -> None:
    (tmp_path / "admin-key").write_text(ADMIN_KEY)
    found = await cli("runs", "list", RECPARAMS_ADMIN_KEY="", RECPARAMS_DATA_DIR=str(tmp_path))
    assert found.code == 0 or "wrong" in found.err


async def test_models(cli: Any, client: Client, tmp_path: Path) -> None:
    assert "hand-written rules" in (await cli("models", "list")).out
    missing = await cli("models", "show")
    assert (missing.code, missing.err.strip()) == (
        2,
        "recparams: there is no active model version",
    )
    await fill(client)
    assert (await cli("train", "--wait")).code == 0
    listed = await cli("models", "list")
    assert listed.out.splitlines()[1].split()[:2] == ["*", "1"]
    shown = await cli("models", "show", "1")
    assert "1 (active)" in shown.out
    assert "maximum Q" in shown.out

    file = tmp_path / "q_table.json"
    assert (await cli("models", "export", "1", "-o", str(file))).code == 0
    assert "q_table" in json.loads(file.read_text())
    assert (await cli("models", "export")).json == json.loads(file.read_text())
    imported = await cli("models", "import", str(file), "--activate", "--json")
    assert (imported.json["version"], imported.json["active"]) == ("2", True)
    file.write_text('{"q_table": {"nowhere": {}}}')
    refused = await cli("models", "import", str(file))
    assert (refused.code, refused.err.strip()) == (
        2,
        "recparams: chunk: q_table['nowhere']: no such state",
    )
    back = await cli("models", "rollback", "--reason", "worse")
    assert back.out.strip() == "serving version 1 (before: version 2)"
    rules = await cli("models", "activate", "0")
    assert rules.out.strip() == "serving the hand-written rules (before: version 1)"


async def test_evaluate(cli: Any, client: Client) -> None:
    await fill(client)
    shown = await cli("evaluate", "--days", "1")
    assert "average reward      1.0000" in shown.out
    assert "like rate           100.0%" in shown.out
    answer = (await cli("evaluate", "--json")).json
    assert answer["interactions"] == "20"
    assert answer["average_reward"] == 1.0


async def test_recommend(cli: Any) -> None:
    shown = await cli("recommend", "ada", *SEED_OPTIONS)
    assert shown.code == 0
    assert "low diverse exploratory" in shown.out
    answer = (await cli("recommend", "ada", *SEED_OPTIONS, "--json")).json
    assert answer["params"]["genre_count"] == 5
    unknown = await cli("recommend", "nobody")
    assert "no_profile" in unknown.out
    bad = await cli("recommend", "ada", "--openness", "300")
    assert bad.code == 2
    assert "personality.openness: must be from 0 to 100, not 300" in bad.err


def test_unknown_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "No such command" in done.stderr
