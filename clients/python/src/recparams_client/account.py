"""What a client knows of its own calls: how many there were, and why some had no answer."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from recparams_client.errors import RecParamsError, from_rpc_error
from recparams_client.forks import restart_after_fork

logger = logging.getLogger("recparams_client")
WARN_SECONDS = 60.0
"""Least time between two warnings of one object."""
WHY_SECONDS = 0.1
"""Time to ask for the reason of a call that was late."""
READY_PAUSE = 0.05
ABSENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
"""How a call ends that nobody has answered."""


@dataclass(frozen=True)
class ClientStats:
    """Numbers of a client's calls, since it was made or its process forked.

    Attributes:
        decisions: decisions that the server made.
        fallbacks: decisions that this library's rules made instead, by their `fallback_reason`.
        writes: calls that stored interactions or profiles.
        failed_writes: those that raised RecParamsError.
        problem: what gRPC last said was wrong with the server; empty after a call it answered.
    """

    decisions: int
    fallbacks: Mapping[str, int]
    writes: int
    failed_writes: int
    problem: str


class Warner:
    """Warnings of one kind: the first at once, then one a minute, with the number in between."""

    def __init__(self) -> None:
        self._next = 0.0
        self._times = 0

    def is_due(self) -> bool:
        """Counts an event. Returns True if it is to be told of now."""
        self._times += 1
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + WARN_SECONDS
        return True

    def warn(self, text: str, *values: object) -> None:
        """Logs a warning of all events since the last one."""
        times, self._times = self._times, 0
        if times > 1:
            text, values = text + " (%d times since the last warning)", (*values, times)
        logger.warning(text, *values)


class Account:
    """The calls of one client. Threads may share it.

    Args:
        address: of the server, for people.

    Attributes:
        address: the same, in one line.
        problem: as in `ClientStats`.
    """

    def __init__(self, address: str | Sequence[str]) -> None:
        self.address = address if isinstance(address, str) else ", ".join(address)
        self.after_fork()
        restart_after_fork(self)

    def after_fork(self) -> None:
        """Begins anew, in the child of a fork."""
        self._lock = threading.Lock()
        self._counts = Counter[str]()
        self._fallbacks = Counter[str]()
        self._warner = Warner()
        self.problem = ""

    @property
    def stats(self) -> ClientStats:
        """The numbers so far."""
        with self._lock:
            one = self._counts
            return ClientStats(
                one["decisions"],
                dict(self._fallbacks),
                one["writes"],
                one["failed_writes"],
                self.problem,
            )

    def answered(self, what: str, times: int = 1) -> None:
        """Counts what the server has done: "decisions" or "writes"."""
        with self._lock:
            self._counts[what] += times
            self.problem = ""

    def fell_back(self, reason: str, times: int = 1) -> bool:
        """Counts decisions of the rules of one call. Returns True if a warning is due."""
        with self._lock:
            self._fallbacks[reason] += times
            return self._warner.is_due()

    def detail(self, raised: Any) -> str:
        """Returns what gRPC says of a call without an answer, and keeps it."""
        said = f"{raised.code().name}: {raised.details()}"
        if raised.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"{said} ({self.problem})" if self.problem else said
        with self._lock:
            self.problem = said
        return said

    def warn(self, detail: str) -> None:
        """Logs that the rules decide, and what is known of the reason."""
        self._warner.warn(
            "recparams at %s does not answer, and the hand-written rules decide: %s",
            self.address,
            detail,
        )

    def why(self, probed: Any) -> str:
        """Returns why a call was late.

        Args:
            probed: what became of a `Check` just after it; None if it was answered.
        """
        code = None if probed is None else probed.code()
        if code is grpc.StatusCode.UNAVAILABLE:
            return self.detail(probed)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self.problem or "it cannot be reached so far"
        return "it is there, but was late"

    def warn_late(self, probed: Any) -> None:
        """Logs that the rules decide because the server was late; `probed` as for `why`."""
        if probed is None or probed.code() is not grpc.StatusCode.CANCELLED:
            self.warn(self.why(probed))

    def failed_write(self, raised: Any, why: str) -> RecParamsError:
        """Counts a failed write and returns its error, with what is wrong besides, if anything."""
        with self._lock:
            self._counts["failed_writes"] += 1
        if raised.code() in ABSENT:
            self.detail(raised)
        failure = from_rpc_error(raised)
        if not why:
            return failure
        return RecParamsError(failure.code, f"{failure.message} ({self.address}: {why})")

    def not_ready(self, timeout: float, raised: Any) -> RecParamsError:
        """Returns the error of a server that is not there in time."""
        return RecParamsError(
            grpc.StatusCode.UNAVAILABLE,
            f"recparams at {self.address} is not ready after {timeout:g} s: {self.detail(raised)}",
        )
