"""What commands print, in lines that a terminal of 80 columns has room for, and in a pipe."""

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams_server.app import App
from recparams_server.settings import Settings
from tests.faults import SMALL
from tests.processes import communicate
from tests.support import ROOT, Client, environment, in_process, train
from tests.trust import likes_high_energy, live, set_rollout

PEOPLE = [f"user-{n}" for n in range(40)]
LONG = "refused: it is worse than the one before, " * 12 + "and that is all"
LARGEST = 4_294_967_294
LISTS = (
    ("runs", "list"),
    ("runs", "show", "1"),
    ("models", "list"),
    ("models", "show", "1"),
    ("rollout", "show", "--history"),
    ("rollout", "experiment"),
    ("evaluate",),
)
PIPED_RUNS, PIPED_MODELS = (None, ("runs", "list")), (None, ("models", "list"))
HEADINGS = ["result", "trained", "reward", "version"]
_BOLD = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    changes = {**SMALL, "gates": "enforce", "gate_interactions": 1000, "rollout": "staged"}
    return in_process(database_url, tmp_path, **{**changes, "watch_seconds": 3600})


# In a process of its own, since the server of a test logs in this one; once for many commands.
_RUNNER = """
import json, sys
from click.testing import CliRunner
from recparams_server.cli import main
for columns, command in json.load(sys.stdin):
    terminal = {"FORCE_COLOR": "1", "COLUMNS": str(columns)} if columns else {"COLUMNS": "80"}
    outcome = CliRunner().invoke(main, command, env=terminal, color=True)
    print(json.dumps((outcome.exit_code, outcome.stdout)))
"""


async def shown(app: App, *commands: tuple[int | None, Sequence[str]]) -> list[list[str]]:
    """Returns the lines of each command on a terminal of so many columns, or without one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _RUNNER),
        env=environment("unused", address=f"127.0.0.1:{app.port}"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(commands).encode())
    process.stdin.close()
    out, _ = await communicate(process)
    told = [json.loads(line) for line in out.splitlines()]
    assert [code for code, _ in told] == [0] * len(commands), told
    return [_BOLD.sub("", text).splitlines() for _, text in told]


async def add_worst_rows(db: asyncpg.Connection) -> None:
    """Adds a run and a version whose every cell is as long as it can be, by copying the first."""
    await db.execute(
        """
        INSERT INTO system_tasks (id, task_name, status, outcome, request_id, finished_at, metadata)
        OVERRIDING SYSTEM VALUE SELECT 1000000, task_name, status, 'superseded', 'worst',
            finished_at, jsonb_set(metadata, '{training}', metadata->'training' || $1)
        FROM system_tasks WHERE id = 1
        """,
        '{"model_version": 4294967294, "interactions_trained": 2000000000, '
        f'"average_reward": -10.12345, "outcome_reason": "{LONG}"}}',
    )
    await db.execute(
        """
        INSERT INTO model_versions (
            version, origin, run_id, algorithm, space, hyperparameters, metrics, q_table,
            q_table_checksum, policy, policy_checksum, main_line, halted_at, halted_reason
        ) OVERRIDING SYSTEM VALUE SELECT $1, origin, 1000000, 'double_q_learning', space,
            hyperparameters, metrics || '{"total_states": 10000000}', q_table, q_table_checksum,
            policy, policy_checksum, false, now(), $2
        FROM model_versions WHERE version = 1
        """,
        LARGEST,
        LONG,
    )


async def test_every_list_fits_a_terminal(app: App, client: Client, db: asyncpg.Connection) -> None:
    await live(client, PEOPLE, likes_high_energy)
    await train(client)
    await add_worst_rows(db)
    await set_rollout(client, version=LARGEST, step="canary", reason=LONG[:400])
    await set_rollout(client, step="half", reason=LONG[:400])
    await live(client, PEOPLE, likes_high_energy)

    asked = [(columns, command) for columns in (80, 100, 120) for command in LISTS]
    for (columns, command), told in zip(asked, await shown(app, *asked), strict=True):
        assert max(map(len, told)) <= columns, (command, columns, told)
        assert not [line for line in told if "…" in line]
    (heading, worst, *rest), piped = await shown(app, (80, ("runs", "list")), PIPED_RUNS)
    assert heading.split() == ["run", "created", "(UTC)", *HEADINGS]
    assert worst.split()[3:] == ["superseded", "2000000000", "-10.123", str(LARGEST)]
    assert " ".join(" ".join(rest).split()).startswith(LONG)
    # In a pipe a row is a line, which ends with what is long.
    assert piped[0].split() == ["run", "created", "(UTC)", *HEADINGS, "why"]
    assert len(piped) == 3
    assert piped[1].endswith(LONG)
    assert "refused: trained on 40 interactions" in piped[2]


async def test_states_of_versions(app: App, client: Client, db: asyncpg.Connection) -> None:
    async def states() -> dict[str, str]:
        (told,) = await shown(app, PIPED_MODELS)
        rows = [re.split(r" {2,}", line.strip("* ")) for line in told[1:] if "rules" not in line]
        return {version: state for version, _, _, state, *_ in rows}

    for _ in range(2):
        await live(client, PEOPLE, likes_high_energy)
        await train(client)
    assert await states() == {"2": "refused", "1": "refused"}
    await set_rollout(client, version=1, percent=100)
    assert await states() == {"2": "refused", "1": "serving 100 %"}
    await set_rollout(client, version=2, step="canary")
    assert await states() == {"2": "rolling out 10 %", "1": "previous 90 %"}
    await set_rollout(client, percent=100)
    assert await states() == {"2": "serving 100 %", "1": "replaced"}
    await db.execute("UPDATE model_versions SET halted_at = now() WHERE version = 1")
    assert (await states())["1"] == "taken back"
    await db.execute("UPDATE model_versions SET metrics = metrics || '{\"total_states\": 0}'")
    (told,) = await shown(app, PIPED_MODELS)
    assert told[1].endswith("-"), "not a 0 that means nothing"


def test_facts_and_tables_keep_what_they_are_given(capsys: Any) -> None:
    from recparams_server.cli.output import print_facts, print_table

    print_table(("a", "share"), [(1, "5 %", "line\nbreak"), (22, "-", "")], notes="why")
    assert capsys.readouterr().out.splitlines() == [
        " a  share  why",
        " 1    5 %  line break",
        "22      -",
    ]
    print_table(("", "nothing"), [])
    print_facts([("one", 1.5), ("two", "")])
    assert capsys.readouterr().out.splitlines() == ["  nothing", "one  1.5000", "two"]
