"""Ending children, and hanging tests: everything here has to end."""

import ast
import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import communicate, end_group, living, running
from tests.sources import parsed
from tests.support import ROOT

STUBBORN = "trap '' TERM; echo; while true; do sleep 0.1; done"
UNBOUNDED = ("subprocess.run", ".check_call", ".check_output", ".communicate")
HELPER = ROOT / "tests/processes.py"
BOUNDS = """
from tests import watchdog

watchdog.TEARDOWN_SECONDS = 0.5
watchdog.LAST_SECONDS = 2.0


def pytest_configure(config):
    config.pluginmanager.register(watchdog.Watchdog(1.0))
"""
HANGS = """
import time

import pytest


@pytest.fixture
def endless():
    yield
    while True:
        try:
            time.sleep(0.01)
        except {caught}:
            pass


def test_fails(endless):
    assert False
"""


def shell(script: str) -> "contextlib.AbstractContextManager[subprocess.Popen[bytes]]":
    return running("bash", "-c", script, stdout=subprocess.PIPE)


def first_line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_zombie_is_reaped() -> None:
    with shell("exit 3") as process:
        zombie = psutil.Process(process.pid)
        while zombie.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        end_group(process)
        assert process.returncode == 3
        assert not zombie.is_running()


def test_a_child_that_ignores_sigterm_is_killed() -> None:
    with shell(STUBBORN) as process:
        first_line(process)
        end_group(process, grace=0.3)
        assert process.returncode == -signal.SIGKILL


def test_a_grandchild_is_ended_after_its_parent() -> None:
    with shell(f"({STUBBORN}) & sleep 0.1; exit") as process:
        first_line(process)
        process.wait(20)
        assert living(process)
        end_group(process, grace=0.3)
        assert not living(process)


def test_a_block_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(subprocess.TimeoutExpired), running("sleep", "1000") as process:
        process.wait(0.1)
    assert process.returncode == -signal.SIGTERM


async def test_a_grandchild_that_holds_the_output_open_holds_nobody_up() -> None:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", "sleep 3 & exit 0"), stdout=asyncio.subprocess.PIPE
    )
    with pytest.raises(TimeoutError):
        await communicate(process, 0.3)


async def test_a_child_that_takes_too_long_is_killed() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    with pytest.raises(TimeoutError):
        await communicate(process, 0.1)
    assert process.returncode == -signal.SIGKILL
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", "echo out; echo err >&2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert await communicate(process) == (b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("caught", "workers", "said"),
    [
        ("Exception", (), "the teardown took longer than 0.5 s"),
        ("BaseException", (), "Timeout (0:00:02)!"),
        ("BaseException", ("-n", "1"), "worker 'gw0' crashed"),
    ],
)
def test_a_teardown_without_end_ends(
    tmp_path: Path, caught: str, workers: tuple[str, ...], said: str
) -> None:
    (tmp_path / "conftest.py").write_text(BOUNDS)
    (tmp_path / "test_hangs.py").write_text(HANGS.replace("{caught}", caught))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--rootdir", tmp_path, "-c", "/dev/null"),
            *("-p", "no:cacheprovider", *workers, tmp_path / "test_hangs.py"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert said in done.stdout


def test_whatever_is_waited_for_has_a_limit() -> None:
    for folder in ("tests", "benchmarks", "deploy", "simulation", "clients/python/tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(parsed(path)):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(UNBOUNDED):
                    limited = any(one.arg == "timeout" for one in call.keywords)
                    assert limited or path == HELPER, f"{path}:{call.lineno}"
