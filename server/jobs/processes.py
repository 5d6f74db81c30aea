"""Processes of jobs: starting them and waiting for them."""

import asyncio
import contextlib
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from typing import TypeVar

import structlog
from google.protobuf.message import Message

from server.contract.errors import store_unavailable
from server.jobs.lifeline import Lifeline
from server.observability import tracing
from server.settings import Settings
from server.store import tasks
from server.store.database import Pool
from server.store.errors import STORE_ERRORS

log = structlog.get_logger()
CHUNK_BYTES = 256 * 1024
MARK_PAUSE = 1.0
MARK_SECONDS = 2.0
INVALID_FILE = 3
"""Exit code of an import whose input is not a q_table.json; the reason is its output."""
STORE_AWAY = 4
"""Exit code of a job that cannot reach the database."""


class Jobs:
    """The jobs of this server, each a process that ends with it, also where it is killed.

    Args:
        settings: passed on to them by environment.
        url: the database they use.
    """

    def __init__(self, settings: Settings, url: str) -> None:
        # Idle BLAS threads spin on cores that serving needs; the matrices here are small.
        blas = {"OPENBLAS_NUM_THREADS": "1"}
        self._lifeline = Lifeline()
        self._environment = {
            **blas,
            **os.environ,
            **settings.to_environment(url),
            **self._lifeline.environment(),
        }
        self._trainers: dict[asyncio.Task[None], Process] = {}
        self._jobs: tuple[tuple[str, Process], ...] = ()

    def running(self) -> Counter[str]:
        """Returns the number of processes by the name of their job."""
        return Counter(job for job, process in self._jobs if process.returncode is None)

    async def _spawn(self, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            # Not from the folder that the server happens to be started in.
            "-P",
            "-m",
            "server.jobs",
            *arguments,
            stdin=stdin,
            stdout=stdout,
            env={**self._environment, **tracing.carrier()},
            pass_fds=(self._lifeline.reader,),
        )
        # A scrape reads it in another thread: it is replaced, not changed.
        running = [one for one in self._jobs if one[1].returncode is None]
        self._jobs = (*running, (arguments[0], process))
        return process

    async def start_training(self, pool: Pool, run_id: int) -> None:
        """Starts the trainer of a pending run; if it dies, its run is marked as failed."""
        process = await self._spawn("train", str(run_id), stdout=DEVNULL)
        watcher = asyncio.create_task(self._watch(process, pool, run_id))
        self._trainers[watcher] = process
        watcher.add_done_callback(lambda done: self._trainers.pop(done, None))

    async def _watch(self, process: Process, pool: Pool, run_id: int) -> None:
        code = await process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        message = f"the trainer {how}; nothing was changed"
        while True:
            try:
                if await tasks.end(pool, run_id, "failed", message):
                    log.error("trainer died", run_id=run_id, code=code)
                return
            except STORE_ERRORS as failure:
                log.warning("trainer ended, run not marked", run_id=run_id, error=failure)
            # Until it is marked no other run can start.
            await asyncio.sleep(MARK_PAUSE)

    async def run(self, *arguments: str) -> tuple[int, bytes]:
        """Returns exit code and output of a job without input. Raises as `_ended`."""
        process = await self._spawn(*arguments)
        try:
            output, _ = await process.communicate()
            return await _ended(process), output
        finally:
            _kill(process)

    async def stream(self, *arguments: str) -> AsyncIterator[bytes]:
        """Yields the output of a job. Raises RuntimeError if it fails, and as `_ended`."""
        process = await self._spawn(*arguments)
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            while piece := await process.stdout.read(CHUNK_BYTES):
                yield piece
            if await _ended(process) != 0:
                raise RuntimeError(f"job {arguments[0]} failed")
        finally:
            _kill(process)

    async def feed(self, pieces: AsyncIterator[bytes], *arguments: str) -> tuple[int, bytes]:
        """Returns exit code and output of a job that reads these pieces from its standard input.

        Raises as `_ended`.
        """
        process = await self._spawn(*arguments, stdin=PIPE)
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - pipes
        try:
            # A job that gives up early closes its input; its exit code says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                async for piece in pieces:
                    process.stdin.write(piece)
                    await process.stdin.drain()
                process.stdin.close()
            output = await process.stdout.read()
            return await _ended(process), output
        finally:
            _kill(process)

    async def stop(self) -> None:
        """Kills all jobs and marks the trainers' runs as failed; none can be started any more."""
        watchers = list(self._trainers)
        for process in list(self._trainers.values()):
            _kill(process)
        if watchers:
            # While the database is away they would go on trying.
            _, trying = await asyncio.wait(watchers, timeout=MARK_SECONDS)
            for watcher in trying:
                watcher.cancel()
        self._lifeline.close()


_M = TypeVar("_M", bound=Message)


async def run_for(jobs: Jobs, answer: type[_M], *arguments: str) -> _M:
    """Runs a job that writes a message of the type `answer`, and returns it.

    Raises RuntimeError if it fails, and as `_ended`.
    """
    code, output = await jobs.run(*arguments)
    if code != 0:
        raise RuntimeError(f"job {arguments[0]} exited with code {code}")
    return answer.FromString(output)


async def _ended(process: Process) -> int:
    """Returns the exit code of a job. Raises UNAVAILABLE if it could not reach the database."""
    code = await process.wait()
    if code == STORE_AWAY:
        raise store_unavailable()
    return code


def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
