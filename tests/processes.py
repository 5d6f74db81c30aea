"""Child processes of tests: every wait for them has a bound, and every end of one is waited for."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

GRACE_SECONDS = 40.0
KILL_SECONDS = 20.0
RUN_SECONDS = 240.0
"""Time for a command that takes a few seconds, on a machine many times slower than ours."""


@contextlib.contextmanager
def running(
    *command: str | Path, grace: float = GRACE_SECONDS, **options: Any
) -> Iterator["subprocess.Popen[Any]"]:
    """Starts a child at the head of a process group, which is ended with the block."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        yield process
    finally:
        end_group(process, grace)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(
    *command: str | Path, seconds: float = RUN_SECONDS, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Runs a command and what it starts to their end, and returns output and errors as text.

    Raises subprocess.TimeoutExpired if that takes too long; all of it is ended then.
    """
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    with running(*command, **given) as process:
        out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def end_group(process: "subprocess.Popen[Any]", grace: float = GRACE_SECONDS) -> None:
    """Ends everything in the process group that a child leads, and reaps the child.

    Args:
        process: started with start_new_session.
        grace: seconds between SIGTERM and SIGKILL.

    Raises TimeoutError if a process survives SIGKILL.
    """
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        if not living(process):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + seconds
        while living(process) and time.monotonic() < deadline:
            time.sleep(0.05)
    if living(process):
        raise TimeoutError(f"{process.args} lives on")


def living(process: "subprocess.Popen[Any]") -> list[int]:
    """Returns the ids of the running processes in the group of a child, zombies left out."""
    process.poll()
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(pid) == process.pid and not has_ended(psutil.Process(pid)):
                found.append(pid)
    return found


def has_ended(process: psutil.Process) -> bool:
    """Returns True once a process is over, waited for or not."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    # In between the two; psutil lets either through.
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


async def communicate(
    process: asyncio.subprocess.Process, seconds: float = RUN_SECONDS
) -> tuple[bytes, bytes]:
    """Returns output and errors of a child, empty where they are no pipes.

    A child that is not done in time is killed. Raises TimeoutError.
    """
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
            return out or b"", err or b""
    finally:
        if process.returncode is None:
            process.kill()
            async with asyncio.timeout(KILL_SECONDS):
                await process.wait()
        # Its pipes, which somebody else may hold open.
        process._transport.close()
