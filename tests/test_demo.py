"""The demo and the simulation, run as people run them, and what they measure with."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import numpy as np
import psutil
import pytest

from recparams_rl.reward import RewardWeights
from recparams_server.app import App
from recparams_server.store.embedded import stop_postgres
from recparams_simulation.demo import DemoError, HeldOut
from recparams_simulation.demo_server import MARK, free_port, fresh_folder
from recparams_simulation.people.population import WEEK
from tests.faults import eventually
from tests.processes import RUN_SECONDS, communicate, running
from tests.support import ROOT, environment

START = 1_700_000_000


@contextlib.contextmanager
def demo_of(folder: Path, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """A demo in a folder, whose Postgres is stopped whatever becomes of the demo."""
    command = (
        sys.executable,
        "-m",
        "recparams_server.cli",
        "demo",
        "--port",
        "0",
        "--data-dir",
        folder,
    )
    try:
        with running(
            *(*command, *arguments),
            cwd=ROOT,
            env=environment("unused"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as demo:
            yield demo
    finally:
        stop_postgres(folder / "postgres")


def test_the_demo_learns_more_than_the_rules_know(tmp_path: Path) -> None:
    folder, png = tmp_path / "data", tmp_path / "curve.png"
    with demo_of(folder, *("--once", "--weeks", "2", "--people", "1000", "--png", png)) as demo:
        output, _ = demo.communicate(timeout=RUN_SECONDS)
    assert demo.returncode == 0, output
    rows = [line.split() for line in output.splitlines() if line.split()[:1] in map(list, "012")]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    learned, rules, random = map(float, rows[-1][2:5])
    assert random < rules < learned
    assert rows[0][2] == rows[0][3]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not (folder / "postgres" / "postmaster.pid").exists()
    assert "Traceback" not in output


def pause_database(folder: Path) -> None:
    """Stops the sessions of a demo's Postgres for longer than servers wait for a profile."""
    postmaster = (folder / "postgres" / "postmaster.pid").read_text().split()[0]
    sessions = psutil.Process(int(postmaster)).children()
    for act, seconds in (psutil.Process.suspend, 0.4), (psutil.Process.resume, 0.1):
        for session in sessions:
            with contextlib.suppress(psutil.NoSuchProcess):
                act(session)
        time.sleep(seconds)


async def test_a_seed_repeats_the_table_whatever_the_database_takes(tmp_path: Path) -> None:
    tables = []

    async def is_serving() -> bool:
        log = folder / "server.log"
        return log.exists() and '"serving"' in log.read_text()

    for pauses in (0, 6):
        folder = tmp_path / f"{pauses} pauses"
        arguments = ("--once", "--weeks", "1", "--people", "200", "--seed", "7")
        with demo_of(folder, *arguments, "--png", tmp_path / "curve.png") as demo:
            if pauses:
                await eventually(is_serving)
            for _ in range(pauses):
                pause_database(folder)
            output, _ = demo.communicate(timeout=RUN_SECONDS)
        tables.append(output.split("\n\n", 1)[1])
    assert tables[0] == tables[1]
    assert re.search(r"^ +1 +[1-9]", tables[0], re.MULTILINE)


def test_the_demo_stops_its_server_and_database_when_it_is_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with demo_of(folder, "--people", "2000", "--png", tmp_path / "curve.png") as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.split()[:1] == ["0"]:
                break
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=RUN_SECONDS)
    assert demo.returncode == 130, output
    assert output.strip().endswith("Stopped.")
    assert not (folder / "postgres" / "postmaster.pid").exists()
    events = [
        json.loads(line)["event"] for line in (folder / "server.log").read_text().splitlines()
    ]
    assert events[-1] == "stopped"


def test_the_demo_touches_no_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with pytest.raises(DemoError, match="not a demo's"), fresh_folder(tmp_path, stop_postgres):
        pass
    assert (tmp_path / "precious").exists()


def test_one_demo_at_a_time_in_a_folder(tmp_path: Path) -> None:
    with fresh_folder(tmp_path / "data", stop_postgres) as folder:
        (folder / "postgres").mkdir()
        (folder / "postgres" / "old").write_text("")
        with pytest.raises(DemoError, match="another demo"), fresh_folder(folder, stop_postgres):
            pass
        assert (folder / "postgres" / "old").exists()
    with fresh_folder(folder, stop_postgres):
        assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(DemoError, match=str(port)):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", port) == port
    assert free_port("127.0.0.1", 0) > 0


def test_held_out_people_are_measured_alike_and_exactly() -> None:
    one, other = (HeldOut(np.random.default_rng(3), RewardWeights(), START) for _ in range(2))
    assert one.measure(one.rules) == other.measure(other.rules)
    random, rules, best = map(one.measure, (one.random, one.rules, one.optimum))
    assert random.reward < rules.reward < best.reward
    assert random.like_rate < rules.like_rate < best.like_rate
    assert one.gain(one.rules) == (0.0, 0.0)
    gain, error = one.gain(one.optimum)
    assert gain > 10 * error > 0.0
    assert np.all((one.at.time >= START) & (one.at.time < START + WEEK))


@pytest.mark.usefixtures("client")
async def test_simulate_records_what_it_says(app: App, db: asyncpg.Connection) -> None:
    arguments = ("simulate", "--decisions", "300", "--people", "40", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "recparams_server.cli", *arguments),
        cwd=ROOT,
        env={**os.environ, "RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await communicate(process)
    assert process.returncode == 0
    facts = json.loads(output)
    recorded = await db.fetchrow(
        "SELECT count(*) AS n, count(propensity) AS known, count(openness) AS people "
        "FROM interactions"
    )
    assert facts["interactions"] == recorded["n"] >= 300
    assert recorded["known"] == recorded["people"] == recorded["n"]
    assert 0.0 < facts["like_rate"] < 1.0


async def test_simulate_without_a_server_says_so() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "recparams_server.cli", "simulate", "--address", "127.0.0.1:1"),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await communicate(process)
    assert process.returncode == 4
    assert errors.decode().startswith("recparams: 127.0.0.1:1: ")
