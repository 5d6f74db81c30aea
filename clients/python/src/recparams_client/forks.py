"""Connections that live through os.fork().

gRPC's threads are not in the child of a fork, and there no call ends any more, not even with an
error. So all connections are closed before a fork, until gRPC has ended its threads, and made anew
where they are used next, in the parent and in the child. Connections of others are not known here:
if they keep gRPC's threads, and gRPC's own support of forks is off, the child is told.
"""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakSet

import grpc

from recparams_client.errors import RecParamsError

PATIENCE = 1.0
"""Seconds that a fork waits for calls under way, then for cancelled ones, then for threads."""

PROBE_SECONDS = 3.0
"""Seconds after which gRPC is known not to work, in a child: without a server a call ends at once.
"""

BROKEN = (
    "gRPC does not work in this process, which was forked while connections of gRPC's that are not "
    "this library's were open: open them after the fork, or set GRPC_ENABLE_FORK_SUPPORT=1 before "
    "grpc is imported"
)
_THREADS = ("event_engine", "grpc_", "lifeguard")
"""How the names of gRPC's threads begin, in Linux."""


class Forked(Protocol):
    """An object with threads or locks of its own."""

    def after_fork(self) -> None:
        """Begins anew, in the child of a fork."""


class _Gate:
    """The connections of this process, and the calls under way, which a fork waits for.

    Attributes:
        changed: guards all of it.
        calls: number of calls under way.
        forking: the thread that forks; None while none does.
        is_proven: False in a child in which gRPC was not tried yet.
        is_broken: True if gRPC does not work in this process.
    """

    def __init__(self) -> None:
        self.connections = WeakSet[Connection]()
        self.others = WeakSet[Forked]()
        self.lost: list[grpc.Channel] = []
        self.has_registered = False
        self.has_threads = False
        self.is_proven = True
        self.is_broken = False
        self.reset()

    def reset(self) -> None:
        """Forgets what was under way."""
        self.changed = threading.Condition()
        self.probing = threading.Lock()
        self.calls = 0
        self.forking: int | None = None

    def register(self) -> None:
        """Has `before` called first, now that gRPC's own handlers are registered."""
        if not self.has_registered and hasattr(os, "register_at_fork"):
            self.has_registered = True
            os.register_at_fork(before=self.before)

    def before(self) -> None:
        """Closes all connections before a fork, and keeps `changed` until it is over."""
        me = threading.get_ident()
        if self.forking == me:
            return
        self.changed.acquire()
        self.changed.wait_for(lambda: self.forking is None, 4 * PATIENCE)
        self.forking = me
        had_any = any(one.is_open for one in self.connections)
        for one in self.connections:
            if one.is_stream:
                one.disconnect()
        self.changed.wait_for(lambda: not self.calls, PATIENCE)
        for one in self.connections:
            one.disconnect()
        self.changed.wait_for(lambda: not self.calls, PATIENCE)
        self.has_threads = _wait_for_threads(PATIENCE if had_any else 0.0)

    def in_parent(self) -> None:
        """Lets calls through again after a fork."""
        self.forking = None
        self.changed.notify_all()
        self.changed.release()

    def in_child(self) -> None:
        """Begins anew after a fork."""
        for connection in self.connections:
            connection.forget(self.lost)
        kept = self.has_threads or bool(self.lost)
        self.is_broken = self.is_broken or (kept and not _supports_forks())
        self.is_proven = self.is_broken
        self.reset()
        for other in self.others:
            other.after_fork()


class Connection:
    """A channel and its stub, made when they are first used, and anew after a fork.

    A with statement around each call gives the stub. Threads may share one.

    Args:
        make_channel: makes the channel.
        make_stub: makes the stub of a channel.
        is_stream: True if its calls have no end, so that a fork does not wait for them.
    """

    def __init__(
        self,
        make_channel: Callable[[], grpc.Channel],
        make_stub: Callable[[grpc.Channel], Any],
        *,
        is_stream: bool = False,
    ) -> None:
        self._make_channel = make_channel
        self._make_stub = make_stub
        self._channel: grpc.Channel | None = None
        self._stub: Any = None
        self._closed = False
        self.is_stream = is_stream
        with _gate.changed:
            _gate.connections.add(self)

    @property
    def is_open(self) -> bool:
        """True if there is a channel."""
        return self._channel is not None

    def __enter__(self) -> Any:
        """Returns the stub. Raises as `require_grpc`, and ValueError if it is closed."""
        require_grpc()
        with _gate.changed:
            if _gate.forking is not None:
                _gate.changed.wait_for(lambda: _gate.forking is None, 4 * PATIENCE)
            if self._closed:
                raise ValueError("the connection is closed")
            if self._channel is None:
                self._channel = self._make_channel()
                self._stub = self._make_stub(self._channel)
                _gate.register()
            _gate.calls += 1
            return self._stub

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with _gate.changed:
            _gate.calls -= 1
            if _gate.forking is not None and not _gate.calls:
                _gate.changed.notify_all()

    def disconnect(self) -> None:
        """Closes the channel, which cancels its calls; the next call makes another one."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            channel.close()

    def forget(self, lost: list[grpc.Channel]) -> None:
        """Leaves a channel of the parent's to a list, since closing it here may never end."""
        if self._channel is not None:
            lost.append(self._channel)
        self._channel = self._stub = None

    def close(self) -> None:
        """Closes the channel for good."""
        with _gate.changed:
            self._closed = True
            self.disconnect()


_gate = _Gate()


def restart_after_fork(one: Forked) -> None:
    """Has `after_fork` of an object called in each child, for as long as the object exists."""
    with _gate.changed:
        _gate.others.add(one)


def require_grpc() -> None:
    """Raises RecParamsError if this is the child of a fork and gRPC does not work in it."""
    if not _gate.is_proven:
        with _gate.probing:
            if not _gate.is_proven:
                _gate.is_broken = not _works()
                _gate.is_proven = True
    if _gate.is_broken:
        raise RecParamsError(grpc.StatusCode.FAILED_PRECONDITION, BROKEN, reason="FORKED")


def _works() -> bool:
    """Returns True if a call comes to an end, as this one does at once, with UNAVAILABLE."""
    channel = grpc.insecure_channel("unix:/dev/null/nowhere")
    call: Any = channel.unary_unary("/recparams_client/Probe", bytes, bytes).future(b"")
    try:
        call.exception(PROBE_SECONDS)
    except grpc.FutureTimeoutError:
        _gate.lost.append(channel)
        return False
    channel.close()
    return True


def _supports_forks() -> bool:
    """Returns True if gRPC's own support of forks is on."""
    with suppress(ImportError, AttributeError):
        return bool(import_module("grpc._cython.cygrpc").is_fork_support_enabled())
    return False


def _wait_for_threads(seconds: float) -> bool:
    """Waits until gRPC has no threads any more. Returns True if it has some after `seconds`."""
    tasks = Path("/proc/self/task")
    deadline = time.monotonic() + seconds
    if not tasks.is_dir():
        time.sleep(min(seconds, 0.1))
        return False
    while _has_threads(tasks):
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.001)
    return False


def _has_threads(tasks: Path) -> bool:
    for task in tasks.iterdir():
        with suppress(OSError):
            if (task / "comm").read_text().startswith(_THREADS):
                return True
    return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_gate.before, after_in_parent=_gate.in_parent, after_in_child=_gate.in_child
    )
