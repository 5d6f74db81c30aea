"""Server processes of tests, forked from one that has imported what servers need.

Importing takes a server most of the time that its start takes. Elsewhere the tests start servers by
their command: for one, `make serve` in the documents, the demo and workers of a supervisor.
"""

import atexit
import multiprocessing
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from recparams_server.imports import of_a_service

with of_a_service():
    # What `recparams serve` imports once it is called.
    from recparams_server import app as app
    from recparams_server.cli import serve as serve
    from recparams_server.observability import logs as logs

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def _serve(environment: dict[str, str], log: Path) -> None:
    """Becomes `recparams serve` with these variables, which writes all it prints to a file."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    try:
        serve.serve(prog_name="recparams serve", args=[])
    finally:
        # A process of multiprocessing runs none of these by itself.
        atexit._run_exitfuncs()


class ForkedServer:
    """A server process, with what the tests use of subprocess.Popen.

    Args:
        environment: all of its variables.
        log: where it writes.
    """

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        log.write_bytes(b"")
        self._process: BaseProcess = _FORKS.Process(target=_serve, args=(environment, log))
        self._process.start()
        # At the end of its parent multiprocessing would wait for it.
        atexit.register(self._process.kill)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Returns its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float) -> int:
        """Returns what `poll` returns once it has ended. Raises TimeoutError."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            raise TimeoutError(f"server {self.pid} lives on after {seconds} s")
        return code

    def kill(self) -> None:
        """Sends SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)
