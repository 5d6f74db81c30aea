"""The processes of jobs as their server sees them: forked from a template, over sockets.

The server sends the template one end of a socket pair for each job, with the job's files. On it
goes a line of JSON, the arguments and the environment; its end means that the job is to be killed.
Back come the lines `started PID`, by the job itself, and `ended CODE`, by the template. The job
holds that end open as long as it runs: closed without a word, there is no such process any more.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence

import structlog

from recparams_server.jobs.template import END_OF_REQUEST, STARTED

log = structlog.get_logger()
IDLE_SECONDS = 60.0
START_SECONDS = 120.0
"""Time for a job to start, on a machine many times slower than ours."""
KILL_SECONDS = 30.0
"""Time for a template to kill a job; one that does not is killed itself, and its jobs with it."""
END_SECONDS = 5.0
STDERR = 2
THREADS = {"OPENBLAS_NUM_THREADS": "1"}
"""Environment of a template, of which a thread would not survive a fork."""


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _TemplateProcess:
    """A process that jobs are forked from.

    Attributes:
        jobs: those of it that have not ended.
        idle_since: when that became 0, in monotonic time.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                # -P: not from the folder that the server happens to be started in.
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "recparams_server.jobs.template",
                    str(theirs.fileno()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **THREADS},
                pass_fds=(theirs.fileno(),),
            )
        # Its queue has room for more jobs than a server has.
        self._control.setblocking(False)
        self.jobs = 0
        self.idle_since = time.monotonic()

    def is_alive(self) -> bool:
        """Returns False once it is over."""
        return self._process.poll() is None

    def send(self, files: Sequence[int]) -> None:
        """Sends the files of a job, which it has from now on. Raises OSError."""
        socket.send_fds(self._control, [b"j"], files)
        self.jobs += 1

    def kill(self) -> None:
        """Kills it, and its jobs with it."""
        self._process.kill()

    def end(self) -> None:
        """Has it end, and its jobs with it, and waits for that."""
        self._control.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def failure(self) -> int:
        """Returns the exit code of a job that it did not start: its own, if it is over."""
        try:
            return self._process.wait(END_SECONDS) or -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return 1


class Template:
    """What jobs are forked from: a process that is started for the first of them.

    It may be used by several servers and event loops within a process, one after another.

    Args:
        idle_seconds: it ends when no job has run for that long.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._process: _TemplateProcess | None = None
        self._closed = False

    async def start(
        self,
        *arguments: str,
        environment: dict[str, str],
        lifeline: int,
        stdin: int = DEVNULL,
        stdout: int = PIPE,
    ) -> "ForkedProcess":
        """Starts a job, and returns before it runs.

        Args:
            arguments: those of `python -m recparams_server.jobs`.
            environment: all of its environment variables.
            lifeline: a pipe; the job is killed when nobody holds the other end.
            stdin: DEVNULL or PIPE.
            stdout: DEVNULL or PIPE.

        Raises OSError if there can be no process or no descriptor, and RuntimeError when closed.
        """
        with contextlib.ExitStack() as theirs:
            null = os.open(os.devnull, os.O_RDWR)
            theirs.callback(os.close, null)
            streams: list[Streams | None] = []
            files = []
            try:
                for kind in (PIPE, stdin, stdout):
                    if kind == PIPE:
                        mine, its = socket.socketpair()
                        files.append(theirs.enter_context(its).fileno())
                        streams.append(await asyncio.open_unix_connection(sock=mine))
                    else:
                        files.append(null)
                        streams.append(None)
                template = self._send((*files, STDERR, lifeline))
            except BaseException:
                for opened in streams:
                    if opened is not None:
                        opened[1].close()
                raise
        connection, stdin_streams, stdout_streams = streams
        assert connection is not None  # noqa: S101 - it is always a pair of sockets
        request = {"arguments": arguments, "environment": environment}
        connection[1].write(json.dumps(request).encode() + END_OF_REQUEST)
        return ForkedProcess(self, template, connection, stdin_streams, stdout_streams)

    def close(self) -> None:
        """Ends the process and its jobs; none can be started any more."""
        self._closed = True
        if self._process is not None:
            self._process.end()
            self._process = None

    def _send(self, files: Sequence[int]) -> _TemplateProcess:
        """Sends the files of a job to a process that lives."""
        if self._closed:
            raise RuntimeError("the server ends, and starts no jobs")
        if self._process is not None and self._process.is_alive():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._process.send(files)
                return self._process
        if self._process is not None:
            self._process.end()
        self._process = _TemplateProcess()
        self._process.send(files)
        return self._process

    def ended(self, template: _TemplateProcess) -> None:
        """Notes that a job has ended; the process ends later where no other begins."""
        template.jobs -= 1
        template.idle_since = time.monotonic()
        if not template.jobs:
            asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle, template)

    def _end_idle(self, template: _TemplateProcess) -> None:
        idle = not template.jobs and time.monotonic() - template.idle_since >= self._idle_seconds
        if idle and template is self._process:
            self._process = None
            threading.Thread(target=template.end, name="end of the job template").start()


class ForkedProcess:
    """The process of a job.

    Attributes:
        stdin: its input, if it is a pipe.
        stdout: its output, if it is a pipe.
        pid: its id, 0 before it has started.
        returncode: its exit code, or minus the signal that killed it; None while it runs.
    """

    def __init__(
        self,
        owner: Template,
        template: _TemplateProcess,
        connection: Streams,
        stdin: Streams | None,
        stdout: Streams | None,
    ) -> None:
        self._owner = owner
        self._template = template
        self._told, self._connection = connection
        self._streams = [streams for streams in (connection, stdin, stdout) if streams is not None]
        self.stdin = None if stdin is None else stdin[1]
        self.stdout = None if stdout is None else stdout[0]
        self.pid = 0
        self.returncode: int | None = None
        self._following = asyncio.create_task(self._follow())

    async def wait(self) -> int:
        """Returns the exit code once the process is over."""
        await asyncio.shield(self._following)
        assert self.returncode is not None  # noqa: S101 - it is over
        return self.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Returns what it writes to its output, once it is over, and nothing."""
        output = b"" if self.stdout is None else await self.stdout.read()
        await self.wait()
        return output, b""

    def kill(self) -> None:
        """Kills it; that it is over is noticed later."""
        if self.returncode is None and not self._connection.is_closing():
            with contextlib.suppress(OSError):
                self._connection.write_eof()
            asyncio.get_running_loop().call_later(KILL_SECONDS, self._kill_template)

    def close(self) -> None:
        """Closes what is left of its input and output; it is killed if it still runs."""
        for _, writer in self._streams:
            writer.close()

    def _kill_template(self) -> None:
        if self.returncode is None:
            log.error("a job was not killed in time: its template is", pid=self.pid)
            self._template.kill()

    async def _follow(self) -> None:
        """Notes when it has started, and what became of it."""
        code = None
        overdue = asyncio.get_running_loop().call_later(START_SECONDS, self._check_started)
        try:
            while code is None and (said := await self._hear()):
                word, number = said.split()
                if word == STARTED:
                    self.pid = int(number)
                else:
                    code = int(number)
            if code is None and not self.pid:
                code = await asyncio.to_thread(self._template.failure)
        finally:
            overdue.cancel()
            self.returncode = -signal.SIGKILL if code is None else code
            self._connection.close()
            self._owner.ended(self._template)

    async def _hear(self) -> str:
        with contextlib.suppress(ConnectionError):
            return (await self._told.readline()).decode()
        return ""

    def _check_started(self) -> None:
        if not self.pid and self.returncode is None:
            log.error("a job has not started in time: its template is killed")
            self._template.kill()
