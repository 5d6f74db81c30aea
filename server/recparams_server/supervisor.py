"""Several server processes on one port (SO_REUSEPORT), and what keeps them running."""

import asyncio
import contextlib
import errno
import multiprocessing
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import structlog
import uvloop

from recparams_server.app import StartError, serve
from recparams_server.development import with_admin_key
from recparams_server.observability import logs
from recparams_server.rpc.listening import numeric_addresses, refusal
from recparams_server.settings import Settings

log = structlog.get_logger()
PROCESSES = multiprocessing.get_context("spawn")
POLL_SECONDS = 0.1
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
SETTLED_SECONDS = 60.0
"""A worker that lived this long is restarted after the first pause again."""
GRACE_SECONDS = 5.0


def supervise(settings: Settings) -> None:
    """Runs `settings.workers` servers until SIGTERM or SIGINT, then drains them.

    A worker that dies is started again. Raises StartError where one cannot start at all.
    """
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    with _reserved_port(settings) as port:
        # One key for all, made up only once the port is known to be free.
        shared = with_admin_key(settings).model_copy(update={"port": port})
        workers = [Worker(shared, number) for number in range(settings.workers)]
        log.info("starting workers", host=settings.host, port=port, workers=settings.workers)
        try:
            while not stopping:
                for worker in workers:
                    worker.keep_running()
                time.sleep(POLL_SECONDS)
        finally:
            for worker in workers:
                worker.terminate()
            limit = settings.lame_duck_seconds + settings.drain_seconds + GRACE_SECONDS
            deadline = time.monotonic() + limit
            for worker in workers:
                worker.wait(deadline)
    log.info("workers stopped")


class Worker:
    """One of the server processes, and those that take its place.

    Args:
        settings: of all of them.
        number: from 0.
    """

    def __init__(self, settings: Settings, number: int) -> None:
        port = settings.metrics_port
        # 0 is any free port, for each.
        metrics_port = port + number if port else port
        # To itself a worker is a single server, and so it is to the jobs that it starts.
        self._settings = settings.model_copy(update={"workers": 1, "metrics_port": metrics_port})
        self._number = number
        self._process: BaseProcess | None = None
        self._starts = 0
        self._started = self._due = 0.0
        self._pause = FIRST_PAUSE
        self._failure, self._tell_failure = PROCESSES.Pipe(duplex=False)

    def keep_running(self) -> None:
        """Starts a process when it is due, and notices when it has died.

        Raises:
            StartError: the first one could not start.
        """
        if self._process is None:
            if time.monotonic() >= self._due:
                self._process = self._start()
        elif self._process.exitcode is not None:
            self._bury(self._process)
            self._process = None

    def terminate(self) -> None:
        """Asks the process to drain and end."""
        if self._process is not None:
            self._process.terminate()

    def wait(self, deadline: float) -> None:
        """Waits for the end of the process until a time, and then kills it."""
        if self._process is None:
            return
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.exitcode is None:
            log.warning("worker did not end in time", worker=self._number, pid=self._process.pid)
            self._process.kill()
            self._process.join()

    def _start(self) -> BaseProcess:
        process = PROCESSES.Process(
            target=_work, args=(self._settings, self._number, self._tell_failure)
        )
        # Its own start, as a part of ours, would unblock the signal.
        resource_tracker.ensure_running()
        # Ctrl-C in a terminal reaches workers too, which would stumble over it while they import.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._started = time.monotonic()
        self._starts += 1
        return process

    def _bury(self, process: BaseProcess) -> None:
        """Says that a process died, and when the next one is due."""
        reason = self._failure.recv() if self._failure.poll() else None
        if reason is not None and self._starts == 1:
            raise StartError(reason)
        now = time.monotonic()
        if now - self._started >= SETTLED_SECONDS:
            self._pause = FIRST_PAUSE
        log.error(
            "worker died",
            worker=self._number,
            pid=process.pid,
            code=process.exitcode,
            reason=reason,
            restart_in=self._pause,
        )
        self._due = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)


@contextlib.contextmanager
def _reserved_port(settings: Settings) -> Iterator[int]:
    """The port, or a free one for 0, kept for workers of this user. Raises StartError."""
    if not hasattr(socket, "SO_REUSEPORT"):
        raise StartError("workers above 1 need SO_REUSEPORT, which this platform does not have")
    try:
        addresses = numeric_addresses(settings.host)
    except OSError as unknown:
        raise StartError(str(refusal(settings.host, settings.port, unknown))) from None
    port = settings.port
    with contextlib.ExitStack() as reserved:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                held = reserved.enter_context(socket.socket(family))
                _hold(held, (address, port))
                port = held.getsockname()[1]
            except OSError as failure:
                # Workers say it where this machine has none of the addresses; one may be enough.
                if failure.errno == errno.EADDRINUSE:
                    raise StartError(str(refusal(settings.host, port, failure))) from None
        yield port


def _hold(held: socket.socket, address: tuple[str, int]) -> None:
    """Binds a socket that never listens, so that it gets no connections."""
    # Closed connections of an earlier server do not count as another server.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(address)
    # It was bound as by the only server, to find any other; from here on workers may join.
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)


def _work(settings: Settings, number: int, tell_failure: "Connection[str, str]") -> None:
    """A worker process from its start to its end."""
    # The supervisor says when to end; what came while this process imported is forgotten.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    logs.configure(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=number)
    try:
        uvloop.run(_serve_supervised(settings))
    except StartError as failure:
        tell_failure.send(str(failure))
        raise SystemExit(1) from None


async def _serve_supervised(settings: Settings) -> None:
    """Serves until SIGTERM, or until the supervisor is gone."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None  # noqa: S101 - it was spawned
    alive = supervisor.sentinel
    loop = asyncio.get_running_loop()

    def drain() -> None:
        loop.remove_reader(alive)
        # First of all: what read the log may be gone as well.
        signal.raise_signal(signal.SIGTERM)
        log.error("the supervisor is gone")

    loop.add_reader(alive, drain)
    await serve(settings, share_port=True)
