"""`python -m recparams_server.jobs.template FD`: what the jobs of a server are forked from.

It has imported what jobs need, which takes longer than most of them, and has one thread, because a
fork copies no other. It ends, and its jobs with it, when the other end of the socket FD is closed.
The server's side, and what is said over the sockets, is in `recparams_server/jobs/forked.py`.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from recparams_server.imports import of_a_service
from recparams_server.jobs.lifeline import end_with

NEEDED_BY_JOBS = (
    "recparams_server.jobs.__main__",
    "recparams_server.jobs.differences",
    "recparams_server.jobs.evaluation",
    "recparams_server.jobs.experiment",
    "recparams_server.jobs.learning_gain",
    "recparams_server.jobs.tables",
    "recparams_server.jobs.training.run",
    "recparams_server.jobs.tuning",
    "recparams_server.jobs.warm",
)
NAME = "job template"
LONGEST_NAME = 15
"""Characters that Linux keeps of the name of a process."""
END_OF_REQUEST = b"\n"
STARTED, ENDED = "started", "ended"
FILES = 5
"""Descriptors that come with a job: its connection, stdin, stdout, stderr and a lifeline."""


@dataclass
class Job:
    """A job of a server.

    Attributes:
        connection: where its server says what to do, and is told what became of it.
        files: its stdin, stdout, stderr, and a pipe that only its server holds open.
        received: what its server has said of it so far.
        pid: of its process, which has not been waited for; 0 before it is forked.
    """

    connection: socket.socket
    files: list[int]
    received: bytearray = field(default_factory=bytearray)
    pid: int = 0

    def request(self) -> dict[str, Any] | None:
        """Returns its arguments and environment once all of that has come."""
        if not self.received.endswith(END_OF_REQUEST):
            return None
        found: dict[str, Any] = json.loads(self.received)
        return found

    def tell(self, word: str, number: int) -> None:
        """Tells its server, which may be gone."""
        with contextlib.suppress(OSError):
            self.connection.send(f"{word} {number}\n".encode())

    def close(self) -> None:
        """Closes what this process holds of it."""
        self.connection.close()
        self.close_files()

    def close_files(self) -> None:
        """Closes what its own process alone has to hold."""
        for file in self.files:
            os.close(file)
        self.files = []


class ForkServer:
    """Forks jobs, and tells of their ends, until the server is gone.

    Args:
        control: where jobs come from.
    """

    def __init__(self, control: socket.socket) -> None:
        self._interrupted = signal.getsignal(signal.SIGINT)
        # Ctrl-C in a terminal is for its jobs and for the server, which then ends it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._control = control
        self._jobs: list[Job] = []
        self._alive, self._life = os.pipe()
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector = selectors.DefaultSelector()
        for source in (control, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        self._kernels = False

    def serve(self) -> NoReturn:
        """Serves until the server is gone, and then ends this process and its jobs."""
        code = 1
        try:
            while self._step():
                pass
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        for job in self._jobs:
            self._kill(job)
        os._exit(code)

    def _step(self) -> bool:
        """Waits for something and deals with it. Returns False if the server is gone."""
        for key, _ in self._selector.select():
            if key.fileobj is self._woken:
                self._woken.recv(4096)
                self._reap()
            elif key.fileobj is not self._control:
                self._hear(key.data)
            elif not self._accept():
                return False
        return True

    def _accept(self) -> bool:
        said, files, _, _ = socket.recv_fds(self._control, 1, FILES)
        for file in files:
            os.set_inheritable(file, False)
        if len(files) == FILES:
            job = Job(socket.socket(fileno=files[0]), files[1:])
            job.connection.setblocking(False)
            self._jobs.append(job)
            self._selector.register(job.connection, selectors.EVENT_READ, job)
        else:
            # There is no room for more; the server sees the connection closed.
            for file in files:
                os.close(file)
        return bool(said)

    def _hear(self, job: Job) -> None:
        """Reads what a job is to do, and then that it is to be killed, or that nobody waits."""
        if job not in self._jobs:
            return
        try:
            piece = job.connection.recv(65536)
        except ConnectionError:
            piece = b""
        job.received += piece
        request = job.request()
        if job.pid:
            self._selector.unregister(job.connection)
            self._kill(job)
        elif not piece:
            self._end(job, -signal.SIGKILL)
        elif request is not None:
            self._fork(job, **request)

    def _kill(self, job: Job) -> None:
        # Its id is nobody else's before it has been waited for.
        if job.pid:
            os.kill(job.pid, signal.SIGKILL)

    def _fork(self, job: Job, arguments: list[str], environment: dict[str, str]) -> None:
        if arguments[0] == "train" and not self._kernels:
            self._kernels = load_kernels()
        try:
            job.pid = os.fork()
        except OSError as failure:
            os.write(job.files[2], f"a job cannot be forked: {failure}\n".encode())
            self._end(job, 1)
            return
        if not job.pid:
            self._become(job, arguments, environment)
        job.close_files()

    def _reap(self) -> None:
        for job in [job for job in self._jobs if job.pid]:
            pid, status = os.waitpid(job.pid, os.WNOHANG)
            if pid:
                self._end(job, os.waitstatus_to_exitcode(status))

    def _end(self, job: Job, code: int) -> None:
        job.tell(ENDED, code)
        self._jobs.remove(job)
        # Not if its server has hung up before.
        with contextlib.suppress(KeyError):
            self._selector.unregister(job.connection)
        job.close()

    def _become(self, job: Job, arguments: list[str], environment: dict[str, str]) -> NoReturn:
        """Carries out a job in the process that was forked for it, and ends that."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, self._interrupted)
            for number, file in enumerate(job.files[:3]):
                os.dup2(file, number)
            for other in self._jobs:
                if other is not job:
                    other.close()
            for source in (self._control, self._woken, self._wakes, self._selector):
                source.close()
            os.close(self._life)
            end_with(job.files[3], self._alive)
            # Its connection stays open as long as it runs: closed, there is no such process.
            job.tell(STARTED, os.getpid())
            code = _run(arguments, environment)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(_flushed(code))


def _run(arguments: list[str], environment: dict[str, str]) -> int:
    """Runs a job in this process, as `recparams_server.jobs` does; returns the exit code."""
    import numpy as np

    from recparams_server.jobs.__main__ import main

    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    # Those that draw from them must not all draw the same.
    random.seed()
    np.random.seed()
    name(" ".join(one for one in arguments if not one.startswith("{")))
    return main(arguments)


def _flushed(code: int) -> int:
    """Writes what is left in the buffers of this process; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    return code


def name(process: str) -> None:
    """Names this process in lists of processes, where that can be done."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(process[:LONGEST_NAME])


def load_kernels() -> bool:
    """Loads what training with the default learner calls; returns False if it is not compiled.

    Compiling takes so much longer that it is left to the job, which may not need all of it.
    """
    from recparams_rl.compiled import NotCompiledError, only_compiled
    from recparams_server.jobs.warm import learn_one

    try:
        with only_compiled():
            learn_one("q_learning")
    except NotCompiledError:
        return False
    gc.freeze()
    return True


def main(control: int) -> NoReturn:
    """Serves as a template; `control` is the descriptor of the socket that jobs come from."""
    server = ForkServer(socket.socket(fileno=control))
    name(NAME)
    with of_a_service():
        for module in NEEDED_BY_JOBS:
            importlib.import_module(module)
    # What is collected in one process would have to be copied for it.
    gc.collect()
    gc.freeze()
    server.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
