"""The command line, run as an operator runs it, against a real server."""

import asyncio
import json
import os
import pty
import re
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import jsonschema
import pytest
from click.testing import CliRunner

from recparams.v1 import models_pb2, models_pb2_grpc
from recparams.v1 import types_pb2 as types
from recparams_server.app import App
from recparams_server.cli import main
from recparams_server.settings import Settings
from tests import processes
from tests.faults import IN_SPACE
from tests.processes import GRACE_SECONDS, communicate
from tests.support import ADMIN_KEY, ROOT, Client, environment, in_process, logged, record

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


SCHEMAS = json.loads((ROOT / "docs/cli.schema.json").read_text())


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


COMMAND = (sys.executable, "-m", "recparams_server.cli")
IMPATIENT = (
    sys.executable,
    "-c",
    "from recparams_server.cli import main, train; train.PATIENCE_SECONDS = 1; main()",
)


async def start(
    *arguments: str, command: tuple[str, ...] = COMMAND, cwd: Path = ROOT, **variables: str
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        cwd=cwd,
        env={**environment("unused"), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def finish(process: asyncio.subprocess.Process) -> Outcome:
    out, err = await communicate(process)
    assert process.returncode is not None
    outcome = Outcome(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in outcome.err
    return outcome


async def run(*arguments: str, **options: Any) -> Outcome:
    outcome = await finish(await start(*arguments, **options))
    if "--json" in arguments and outcome.out:
        check_schema(arguments, outcome.out)
    return outcome


def check_schema(arguments: Sequence[str], out: str) -> None:
    """Checks that what a command printed is as docs/cli.schema.json has it."""
    known = SCHEMAS["properties"]
    name = next(n for n in (" ".join(arguments[:2]), arguments[0]) if n in known)
    schema = {**known[name], "$defs": SCHEMAS["$defs"]}
    whole = out.startswith("{\n")
    for document in [out] if whole else out.splitlines():
        jsonschema.validate(json.loads(document), schema)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **IN_SPACE, gates="report")


@pytest.fixture
def cli(app: App, client: Client) -> Any:
    """Runs a command against the test's server."""

    async def call(*arguments: str, cwd: Path = ROOT, **variables: str) -> Outcome:
        address = f"127.0.0.1:{app.port}"
        return await run(*arguments, cwd=cwd, **{"RECPARAMS_ADDRESS": address, **variables})

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


async def hold_runs(db: asyncpg.Connection) -> None:
    """Makes every run wait for a lock where it reads what it may read up to."""
    await db.execute("SELECT pg_advisory_lock_shared(7270001)")


async def let_go(db: asyncpg.Connection) -> None:
    await db.execute("SELECT pg_advisory_unlock_all()")


async def until_running(db: asyncpg.Connection) -> None:
    while not await db.fetchval("SELECT count(*) FROM system_tasks WHERE status = 'running'"):
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("serve",),
        ("health",),
        ("migrate",),
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
        ("models", "diff"),
        ("models", "delete"),
        ("models", "prune"),
        ("doctor",),
        ("rollout",),
        ("rollout", "show"),
        ("rollout", "set"),
        ("rollout", "next"),
        ("rollout", "experiment"),
        ("shadow",),
        ("shadow", "start"),
        ("shadow", "stop"),
        ("shadow", "show"),
        ("status",),
        ("forget",),
        ("new-key",),
        ("simulate",),
        ("demo",),
    ],
)
def test_help_teaches(command: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(main, [*command, "--help"])
    assert outcome.exit_code == 0
    assert "Usage:" in outcome.output
    assert len(outcome.output.splitlines()) > 5
    if command not in ((), ("runs",), ("models",)):
        assert f"\n  recparams {' '.join(command)}" in outcome.output, "an example"


async def test_training_step_by_step(cli: Any, client: Client) -> None:
    await fill(client)
    trained = await cli(
        "train", "--wait", "--json", "--min-interactions", "3", "--learning-rate", "0.2"
    )
    assert trained.code == 0, trained.err
    *steps, last = [json.loads(line) for line in trained.out.splitlines()]
    assert all({"run_id", "stage", "progress"} == set(step) for step in steps)
    assert last["status"] == "TRAINING_RUN_STATUS_COMPLETED"
    assert last["interactions_trained"] == 20
    assert last["hyperparameters"]["learning_rate"] == 0.2

    listed = await cli("runs", "list")
    assert listed.out.split()[:3] == ["run", "created", "(UTC)"]
    assert "activated" in listed.out
    assert (await cli("runs", "list", "--json")).json["runs"][0]["run_id"] == last["run_id"]
    shown = await cli("runs", "show", str(last["run_id"]))
    assert "20 (0 waiting)" in shown.out
    again = await cli("runs", "watch", str(last["run_id"]))
    assert again.code == 0
    ended = await cli("runs", "cancel", str(last["run_id"]))
    assert (ended.code, ended.err.strip()) == (2, "recparams: training run 1 has ended")

    started = await cli("train", "--request-id", "r2")
    assert "training run 2 started" in started.out
    assert (await cli("runs", "watch", "2")).code == 0
    repeated = await cli("train", "--request-id", "r2", "--json")
    assert repeated.json["run_id"] == 2


async def test_a_progress_bar_on_a_terminal(client: Client, app: App) -> None:
    await fill(client)
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "recparams_server.cli", "train", "--wait"),
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
    await communicate(process)
    assert process.returncode == 0
    assert b"%" in shown
    assert re.search(rb"model version +1\b", shown)


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

    await hold_runs(db)
    waiting = asyncio.create_task(cli("train", "--wait"))
    await until_running(db)
    busy = await cli("train", "--wait")
    assert (busy.code, busy.err.strip()) == (
        3,
        "recparams: training run 1 is under way: watch it or wait for it",
    )
    assert (await cli("runs", "cancel", "1")).code == 0
    assert (await waiting).code == 5
    await let_go(db)

    await fill(client)
    await db.execute("ALTER TABLE model_versions RENAME COLUMN metrics TO metrics_")
    failed = await cli("train", "--wait", "--json")
    assert failed.code == 1
    assert "metrics" in json.loads(failed.out.splitlines()[-1])["error"]


async def test_a_development_servers_key_is_found(cli: Any, tmp_path: Path) -> None:
    folder = tmp_path / ".recparams"
    folder.mkdir()
    (folder / "admin-key").write_text(f"{ADMIN_KEY}\n")
    assert (await cli("runs", "list", RECPARAMS_ADMIN_KEY="", cwd=tmp_path)).code == 0
    moved = {"RECPARAMS_ADMIN_KEY": "", "RECPARAMS_DATA_DIR": str(folder)}
    assert (await cli("runs", "list", **moved)).code == 0


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
    assert (imported.json["version"], imported.json["active"]) == (2, True)
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
    assert re.search(r"^average reward +1\.0000$", shown.out, re.MULTILINE)
    assert re.search(r"^like rate +100\.0%$", shown.out, re.MULTILINE)
    answer = (await cli("evaluate", "--json")).json
    assert answer["interactions"] == 20
    assert answer["average_reward"] == 1.0


async def test_recommend(cli: Any) -> None:
    shown = await cli("recommend", "ada", *SEED_OPTIONS)
    assert shown.code == 0
    assert "low diverse exploratory" in shown.out
    answer = (await cli("recommend", "ada", *SEED_OPTIONS, "--json")).json
    assert answer["params"]["genre_count"] == 5
    unknown = await cli("recommend", "nobody", "--time-of-day", "evening")
    assert "no_profile" in unknown.out
    bad = await cli("recommend", "ada", "--openness", "300")
    assert bad.code == 2
    assert "personality.openness: must be from 0 to 100, not 300" in bad.err


def test_unknown_commands() -> None:
    done = processes.run(sys.executable, "-m", "recparams_server.cli", "nonsense", cwd=ROOT)
    assert done.returncode == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_waiting_outlives_a_restart(
    cli: Any, db: asyncpg.Connection, start_server: Any, end: signal.Signals
) -> None:
    """The run belongs to `cli`'s server; another one, which is watched, goes and comes back."""
    watched = start_server(drain_seconds=0.2)
    await hold_runs(db)
    assert (await cli("train")).code == 0
    await until_running(db)
    watcher = await start("runs", "watch", "1", "--json", RECPARAMS_ADDRESS=watched.target)
    assert watcher.stdout is not None
    assert json.loads(await watcher.stdout.readline())["run_id"] == 1
    watched.process.send_signal(end)
    await asyncio.to_thread(watched.process.wait, GRACE_SECONDS)
    start_server(port=watched.port)
    await let_go(db)
    outcome = await finish(watcher)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out.splitlines()[-1])["status"] == "TRAINING_RUN_STATUS_COMPLETED"


async def test_waiting_ends_where_the_server_stays_away(
    cli: Any, db: asyncpg.Connection, start_server: Any
) -> None:
    watched = start_server()
    await hold_runs(db)
    assert (await cli("train")).code == 0
    variables = {"RECPARAMS_ADDRESS": watched.target}
    watcher = await start("runs", "watch", "1", "--json", command=IMPATIENT, **variables)
    assert watcher.stdout is not None
    await watcher.stdout.readline()
    watched.kill()
    outcome = await finish(watcher)
    assert outcome.code == 4
    assert outcome.err.startswith(f"recparams: {watched.target}: ")
    assert len(outcome.err.splitlines()) == 1


async def test_ctrl_c_leaves_the_run_going(cli: Any, app: App, db: asyncpg.Connection) -> None:
    await hold_runs(db)
    address = f"127.0.0.1:{app.port}"
    waiting = await start("train", "--wait", "--json", RECPARAMS_ADDRESS=address)
    assert waiting.stdout is not None
    await waiting.stdout.readline()
    waiting.send_signal(signal.SIGINT)
    outcome = await finish(waiting)
    assert (outcome.code, outcome.err.strip()) == (
        130,
        "training run 1 goes on: recparams runs watch 1, or recparams runs cancel 1",
    )
    await let_go(db)
    assert (await cli("runs", "watch", "1")).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("models", "show", "9" * 20), 2, "is too large"),
        (("runs", "watch", "9" * 20), 2, "is too large"),
        (("runs", "show", "one"), 2, "'one' is not a whole number"),
        (("train", "--days", "9" * 10), 2, "is too large"),
        (("train", "--as-of", "noon"), 2, "'noon' is no time"),
        (("train", "--as-of", "0001-01-01T00:00+14:00"), 2, "is no time"),
        (("evaluate", "--as-of", "2999-01-01"), 2, "as_of: lies in the future"),
        (("runs", "list", "--admin-key", "schlüssel"), 7, "printable ASCII"),
        (("runs", "list", "--address", "nowhere:none"), 4, "nowhere:none"),
    ],
)
async def test_bad_input_is_explained(
    cli: Any, arguments: tuple[str, ...], code: int, says: str
) -> None:
    outcome = await cli(*arguments)
    assert outcome.code == code
    assert says in outcome.err


async def test_times_are_iso(cli: Any) -> None:
    for given in ("2026-03-01", "2026-03-01T00:00:00Z", "2026-03-01T02:00:00.000+02:00"):
        answer = (await cli("evaluate", "--as-of", given, "--json")).json
        assert answer["period_end"] == "2026-03-01T00:00:00Z"


async def test_what_a_run_says_is_no_markup(cli: Any, db: asyncpg.Connection) -> None:
    error = "q_table[/bold] :warning: [red]"
    assert (await cli("train", "--wait")).code == 0
    await db.execute("UPDATE system_tasks SET error = $1", error)
    assert error in (await cli("runs", "list")).out


class Breaking(models_pb2_grpc.ModelServiceServicer):
    """Sends half a table."""

    async def ExportModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield models_pb2.ExportModelResponse(chunk=b'{"q_table":')
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


async def test_a_broken_export_leaves_the_file_alone(tmp_path: Path) -> None:
    server = grpc.aio.server()
    models_pb2_grpc.add_ModelServiceServicer_to_server(Breaking(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    file = tmp_path / "q_table.json"
    file.write_text("kept")
    broken = await run("models", "export", "1", "-o", str(file), RECPARAMS_ADDRESS=address)
    assert (broken.code, broken.err.strip()) == (4, f"recparams: {address}: gone")
    assert file.read_text() == "kept"
    assert not file.with_name("q_table.json.part").exists()
    nowhere = str(tmp_path / "none" / "q_table.json")
    lost = await run("models", "export", "1", "-o", nowhere, RECPARAMS_ADDRESS=address)
    assert (lost.code, lost.err.strip()) == (1, f"recparams: {nowhere}: No such file or directory")
    await server.stop(0)
