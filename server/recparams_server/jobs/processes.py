"""Processes of jobs: starting them and waiting for them."""

import asyncio
import contextlib
import os
from asyncio.subprocess import DEVNULL, PIPE
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from recparams_server.contract.errors import error, exhausted, store_unavailable
from recparams_server.jobs.forked import ForkedProcess, Template
from recparams_server.jobs.lifeline import Lifeline
from recparams_server.observability import tracing
from recparams_server.settings import Settings
from recparams_server.store import tasks
from recparams_server.store.database import Pool
from recparams_server.store.errors import STORE_ERRORS

log = structlog.get_logger()
CHUNK_BYTES = 256 * 1024
MARK_PAUSE = 1.0
MARK_SECONDS = 2.0
RETRY_SECONDS = 10.0
INVALID_FILE = 3
"""Exit code of an import whose input is not a q_table.json; the reason is its output."""
STORE_AWAY = 4
"""Exit code of a job that cannot reach the database."""
UNUSABLE_MODEL = 5
"""Exit code of a job that needs a version that cannot be used; its output is `REASON message`."""
UNDER_WAY = 6
"""Exit code of a job of which there is one at a time, while another is under way."""
LENGTH_BYTES = 4
"""Of the big-endian length that comes before each message of a job that writes several."""


class Jobs:
    """The jobs of this server, each a process that ends with it, also where it is killed.

    Args:
        settings: passed on to them by environment.
        url: the database they use.
        template: what they are forked from, left open for others; None for one of their own.
    """

    def __init__(self, settings: Settings, url: str, template: Template | None = None) -> None:
        self._lifeline = Lifeline()
        self._environment = {**os.environ, **settings.to_environment(url)}
        self._template = template or Template()
        self._close_template = self._template.close if template is None else None
        self._most = settings.max_jobs
        self._most_of_a_kind = settings.max_jobs_of_a_kind
        self._taken: Counter[str] = Counter()
        self._trainers: dict[asyncio.Task[None], ForkedProcess] = {}
        self._jobs: tuple[tuple[str, ForkedProcess], ...] = ()

    def running(self) -> Counter[str]:
        """Returns the number of processes by the name of their job."""
        return Counter(job for job, process in self._jobs if process.returncode is None)

    async def _spawn(
        self, *arguments: str, stdin: int = DEVNULL, stdout: int = PIPE
    ) -> ForkedProcess:
        process = await self._template.start(
            *arguments,
            environment={**self._environment, **tracing.carrier()},
            lifeline=self._lifeline.reader,
            stdin=stdin,
            stdout=stdout,
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

    async def _watch(self, process: ForkedProcess, pool: Pool, run_id: int) -> None:
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

    @contextlib.contextmanager
    def _place(self, job: str) -> Iterator[None]:
        """Takes a place for a job. Raises RESOURCE_EXHAUSTED if there is none."""
        if self._taken[job] >= self._most_of_a_kind or self._taken.total() >= self._most:
            raise exhausted(
                "TOO_MANY_JOBS",
                f"this server does {self._taken[job]} of the kind {job!r} and "
                f"{self._taken.total()} in all, and no more at a time: try again later",
                RETRY_SECONDS,
            )
        self._taken[job] += 1
        try:
            yield
        finally:
            self._taken[job] -= 1

    @contextlib.asynccontextmanager
    async def _process(self, *arguments: str, stdin: int = DEVNULL) -> AsyncIterator[ForkedProcess]:
        """Starts a job, and sees to it that its process has ended in the end."""
        process = await self._spawn(*arguments, stdin=stdin)
        try:
            yield process
        finally:
            process.kill()
            try:
                # Its place is free when its memory is.
                await process.wait()
            finally:
                process.close()

    async def run(self, *arguments: str, reserved: bool = False) -> tuple[int, bytes]:
        """Returns exit code and output of a job without input.

        Args:
            arguments: those of `recparams_server.jobs`.
            reserved: True for what the server does by itself, which needs no place.

        Raises as `_ended`, and RESOURCE_EXHAUSTED if there are too many jobs.
        """
        with contextlib.nullcontext() if reserved else self._place(arguments[0]):
            async with self._process(*arguments) as process:
                output, _ = await process.communicate()
                return await _ended(process, output), output

    async def stream(self, *arguments: str) -> AsyncIterator[bytes]:
        """Yields the output of a job. Raises RuntimeError if it fails, and as `run`."""
        with self._place(arguments[0]):
            async with self._process(*arguments) as process:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                held = b""
                # The last piece of a job that fails is no part of what was asked for.
                while piece := await process.stdout.read(CHUNK_BYTES):
                    if held:
                        yield held
                    held = piece
                if await _ended(process, held) != 0:
                    raise RuntimeError(f"job {arguments[0]} failed")
                if held:
                    yield held

    async def messages(self, *arguments: str) -> AsyncGenerator[bytes, None]:
        """Yields the messages that a job writes, as they come. Raises as `stream`."""
        with self._place(arguments[0]):
            async with self._process(*arguments) as process:
                assert process.stdout is not None  # noqa: S101 - it is a pipe
                with contextlib.suppress(asyncio.IncompleteReadError):
                    while True:
                        length = await process.stdout.readexactly(LENGTH_BYTES)
                        yield await process.stdout.readexactly(int.from_bytes(length, "big"))
                if await _ended(process, b"") != 0:
                    raise RuntimeError(f"job {arguments[0]} failed")

    async def feed(self, pieces: AsyncIterator[bytes], *arguments: str) -> tuple[int, bytes]:
        """Returns exit code and output of a job that reads these pieces from its standard input.

        Raises as `run`.
        """
        with self._place(arguments[0]):
            async with self._process(*arguments, stdin=PIPE) as process:
                stdin, stdout = process.stdin, process.stdout
                assert stdin is not None and stdout is not None  # noqa: S101 - pipes
                # A job that gives up early closes its input; its exit code says why.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    async for piece in pieces:
                        stdin.write(piece)
                        await stdin.drain()
                    stdin.close()
                output = await stdout.read()
                return await _ended(process, output), output

    async def stop(self) -> None:
        """Kills all jobs and marks the trainers' runs as failed; none can be started any more."""
        watchers = list(self._trainers)
        for process in list(self._trainers.values()):
            process.kill()
        if watchers:
            # While the database is away they would go on trying.
            _, trying = await asyncio.wait(watchers, timeout=MARK_SECONDS)
            for watcher in trying:
                watcher.cancel()
        self._lifeline.close()
        if self._close_template is not None:
            await asyncio.to_thread(self._close_template)


_M = TypeVar("_M", bound=Message)


async def run_for(jobs: Jobs, answer: type[_M], *arguments: str, reserved: bool = False) -> _M:
    """Runs a job that writes a message of the type `answer`, and returns it.

    Raises RuntimeError if it fails, and as `Jobs.run`.
    """
    code, output = await jobs.run(*arguments, reserved=reserved)
    if code != 0:
        raise RuntimeError(f"job {arguments[0]} exited with code {code}")
    return answer.FromString(output)


async def _ended(process: ForkedProcess, output: bytes) -> int:
    """Returns the exit code of a job.

    Raises UNAVAILABLE if it could not reach the database, and FAILED_PRECONDITION if a version that
    it needs cannot be used, or another is under way.
    """
    code = await process.wait()
    if code == STORE_AWAY:
        raise store_unavailable()
    if code == UNUSABLE_MODEL:
        reason, _, message = output.decode().partition(" ")
        raise error(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
    if code == UNDER_WAY:
        raise error(
            grpc.StatusCode.FAILED_PRECONDITION,
            "TUNING_ALREADY_RUNNING",
            "another tuning is under way: try again when it is over",
        )
    return code
