"""A thread that follows WatchPolicy, and comes back to the server whatever happens to it."""

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc

from recparams.v1 import policy_pb2
from recparams_client.errors import from_rpc_error
from recparams_client.forks import Connection
from recparams_client.sealing import SealingKey
from recparams_client.snapshot import Snapshot, SnapshotError, decode

logger = logging.getLogger(__name__)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 10.0
_MISSED_HEARTBEATS = 3.0
_FIRST_WORD = 20.0
"""Seconds that a server may take to send a policy at first."""


class Watcher:
    """The last message of each kind from WatchPolicy, kept up to date by a thread.

    Args:
        connection: to PolicyService; it is not closed here.
        metadata: of the call.
        on_snapshot: called, in the watcher's thread, with each new snapshot.

    Attributes:
        key: the key to seal tokens with, or None.
        heard_at: time.monotonic() of the server's last message; None before any.
        problem: the reason for which it cannot be followed right now; empty while it is.
        is_running: False in the child of a fork until it is started there.
    """

    def __init__(
        self,
        connection: Connection,
        metadata: tuple[tuple[str, str], ...] | None,
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:
        self._connection = connection
        self._metadata = metadata
        self._on_snapshot = on_snapshot
        self._known = b""
        self._call: Any = None
        self._stop = threading.Event()
        self.key: SealingKey | None = None
        self.heard_at: float | None = None
        self.problem = "not connected yet"
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self.is_running = False
        self.start()

    def start(self) -> None:
        """Starts the thread, unless it runs, or was stopped."""
        with self._starting:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="recparams-watch", daemon=True
                )
                self._thread.start()
                self.is_running = True

    def after_fork(self) -> None:
        """Begins anew, in the child of a fork, without a thread but with the last messages."""
        stopped = self._stop.is_set()
        self._stop = threading.Event()
        if stopped:
            self._stop.set()
        self._starting = threading.Lock()
        self._thread = None
        self.is_running = False
        self._call = None

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._call is not None:
            self._call.cancel()
        if self._thread is not None:
            self._thread.join(5.0)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._stop.is_set():
            heard = self.heard_at
            try:
                with self._connection as stub:
                    self._follow(stub)
                self.problem = "the server ended the stream"
            except grpc.RpcError as raised:
                self.problem = str(from_rpc_error(raised))
            except SnapshotError as refused:
                self.problem = str(refused)
            except Exception as failure:  # Nothing may end this thread in silence.
                self.problem = repr(failure)
                logger.exception("the policy cannot be followed")
            pause = _FIRST_PAUSE if self.heard_at != heard else min(2 * pause, _LONGEST_PAUSE)
            # Spread out, so that not all callers come back to a server at once.
            self._stop.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311

    def _follow(self, stub: Any) -> None:
        request = policy_pb2.WatchPolicyRequest(known_checksum=self._known)
        call = stub.WatchPolicy(request, metadata=self._metadata)
        self._call = call
        if self._stop.is_set():
            call.cancel()
        watchdog = _Watchdog(call)
        watchdog.expect(_FIRST_WORD)
        try:
            for response in call:
                watchdog.expect(_MISSED_HEARTBEATS * max(response.heartbeat_seconds, 0.1))
                snapshot = None
                if response.snapshot:
                    snapshot = decode(response.snapshot, response.checksum)
                    self._known = snapshot.checksum
                elif response.checksum != self._known:
                    raise SnapshotError("the server took another snapshot for known")
                if response.HasField("token_key"):
                    one = response.token_key
                    self.key = SealingKey(one.id, one.key, one.expires_at.seconds)
                self.heard_at = time.monotonic()
                self.problem = ""
                if snapshot is not None:
                    self._on_snapshot(snapshot)
        finally:
            watchdog.end()
            call.cancel()
            self._call = None


class _Watchdog:
    """A timer that cancels a call that has gone silent, as one does whose server was cut off."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._timer: threading.Timer | None = None

    def expect(self, seconds: float) -> None:
        """Has the call cancelled unless it is set anew within so many seconds."""
        self.end()
        self._timer = threading.Timer(seconds, self._call.cancel)
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()
