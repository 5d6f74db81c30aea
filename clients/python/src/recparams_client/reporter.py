"""Reports of interactions in the background, so that no request waits for the database."""

import atexit
import logging
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from recparams_client.account import Warner
from recparams_client.closing import Closing
from recparams_client.conversion import check_interaction
from recparams_client.delivery import Delivery
from recparams_client.forks import require_grpc, restart_after_fork
from recparams_client.sync import RecParamsClient
from recparams_client.types import Interaction

logger = logging.getLogger(__name__)
CAPACITY = 10_000
RETRY_SECONDS = 300.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_CLOSING_GRACE = 1.0
"""Seconds beyond all timeouts that a call under way has to come back."""

OnUndelivered = Callable[[Sequence[Interaction], str], None]


class InteractionReporter(Closing):
    """A queue of interactions that a thread of its own records in batches. Threads may share one.

    Those that the server cannot take for now are tried again until they are stored: interactions
    are safe to repeat, so none is counted twice. Errors that may pass or not (INTERNAL, UNKNOWN,
    and exceptions of the client) are tried again for `retry_seconds`. Those that the server
    refuses, that no message can be made of, or that find no room, are counted and handed to
    `on_undelivered`. At the end of the program those left are sent, for up to `flush_seconds`.
    After os.fork() it goes on in both processes: what waits is the parent's, and the child begins
    with nothing and a thread and a connection of its own.

    Args:
        client: to record by; it is not closed here.
        capacity: most interactions that wait, 1 or more.
        interval: seconds after which a batch is sent, however small.
        flush_seconds: seconds that `close`, and the end of the program, wait for those left.
        retry_seconds: seconds for which errors that may not pass are tried again.
        on_undelivered: called with interactions that are given up and the reason, in the reporter's
            thread, or in that of `report` if there is no room and of `close` if a call hangs.

    Attributes:
        delivered: number of interactions that are in the database.
        undelivered: number of those given up.

    Raises:
        ValueError: capacity is below 1.
    """

    def __init__(
        self,
        client: RecParamsClient,
        *,
        capacity: int = CAPACITY,
        interval: float = 1.0,
        flush_seconds: float = 5.0,
        retry_seconds: float = RETRY_SECONDS,
        on_undelivered: OnUndelivered | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, not {capacity}")
        self._client = client
        self._capacity = capacity
        self._interval = interval
        self._flush_seconds = flush_seconds
        self._retry_seconds = retry_seconds
        self._on_undelivered = on_undelivered
        self._deadline: float | None = None
        self.after_fork()
        self._start()
        restart_after_fork(self)
        atexit.register(self.close)

    def after_fork(self) -> None:
        """Begins with nothing, in the child of a fork too: what waits there is the parent's."""
        self._waiting: deque[Interaction] = deque()
        self._batch: list[Interaction] = []
        self._changed = threading.Condition()
        self._urgent = False
        self._delivery = Delivery(self._client, self._retry_seconds, self._settle, self._time_left)
        self._thread: threading.Thread | None = None
        self._waits, self._losses = Warner(), Warner()
        self.delivered = 0
        self.undelivered = 0

    def _start(self) -> None:
        """Starts the thread, unless it runs or the reporter is closed. Raises as `require_grpc`."""
        require_grpc()
        with self._changed:
            if self._thread is None and self._deadline is None:
                self._thread = threading.Thread(
                    target=self._run, name="recparams-report", daemon=True
                )
                self._thread.start()
                if (util := sys.modules.get("multiprocessing.util")) is not None:
                    # Its children end without atexit.
                    util.Finalize(self, self.close, exitpriority=0)

    @property
    def queued(self) -> int:
        """The number of interactions that wait or are being sent."""
        with self._changed:
            return len(self._waiting) + len(self._batch)

    def report(self, interaction: Interaction) -> bool:
        """Queues an interaction. Returns False, at once, if there is no room or it is closed.

        Raises:
            TypeError: a field has a value of a wrong type.
            ValueError: occurred_at has no time zone.
            RecParamsError: this is the child of a fork, and gRPC does not work in it.
        """
        check_interaction(interaction)
        if self._thread is None:
            self._start()
        with self._changed:
            queued = len(self._waiting) + len(self._batch)
            room = queued < self._capacity and self._deadline is None
            if room:
                self._waiting.append(interaction)
                self._changed.notify_all()
            else:
                self.undelivered += 1
        if not room:
            self._hand_back([interaction], "there is no room")
        return room

    def flush(self, timeout: float | None = None) -> bool:
        """Sends the queue at once and waits until all is stored or given up.

        Returns False if that takes longer than `timeout` seconds.
        """
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._waiting or self._batch), timeout)

    def close(self) -> None:
        """Sends the queue, for up to `flush_seconds`, and gives up what remains then."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + self._flush_seconds
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            if self._thread is not None:
                # A call under way ends by itself within the client's timeout.
                self._thread.join(self._flush_seconds + self._client.write_timeout + _CLOSING_GRACE)
            self._give_up_all()
        atexit.unregister(self.close)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while batch := self._next():
            try:
                problem = self._delivery.send(batch)
            except BaseException as failure:  # Nothing may end this thread in silence.
                logger.exception("interactions could not be reported")
                self._settle(batch, batch, repr(failure))
                problem = ""
            if problem and self._waits.is_due():
                self._waits.warn("interactions wait to be recorded: %s", problem)
            pause = min(2 * pause, _LONGEST_PAUSE) if problem else _FIRST_PAUSE
            with self._changed:
                if batch is not self._batch:
                    break
                self._waiting.extendleft(reversed(batch))
                self._batch = []
                if problem and not self._late():
                    # Spread out, so that not all callers come back to a server at once.
                    self._changed.wait_for(
                        self._late,
                        pause * random.uniform(0.5, 1.5),  # noqa: S311
                    )
                if not self._waiting:
                    self._urgent = False
                self._changed.notify_all()
                if problem and self._late():
                    break
        self._give_up_all()

    def _late(self) -> bool:
        return self._time_left() == 0.0

    def _next(self) -> list[Interaction]:
        """Returns the next batch; empty when the reporter is closed and there is none left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
            self._changed.wait_for(
                lambda: (
                    len(self._waiting) >= self._delivery.size
                    or self._urgent
                    or self._deadline is not None
                ),
                self._interval,
            )
            size = min(self._delivery.size, len(self._waiting))
            self._batch = [self._waiting.popleft() for _ in range(size)]
            return self._batch

    def _time_left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def _settle(
        self, batch: list[Interaction], done: Sequence[Interaction], why: str | None
    ) -> None:
        """Takes interactions out of a batch, as delivered, or as given up for a reason."""
        settled = set(map(id, done))
        with self._changed:
            if batch is not self._batch:
                batch.clear()
                return
            gone = [one for one in batch if id(one) in settled]
            batch[:] = [one for one in batch if id(one) not in settled]
            if why is None:
                self.delivered += len(gone)
            else:
                self.undelivered += len(gone)
            self._changed.notify_all()
        if why is not None:
            self._hand_back(gone, why)

    def _give_up_all(self) -> None:
        """Gives up what waits, and what a call that did not come back in time was sending."""
        with self._changed:
            left = [*self._batch, *self._waiting]
            self._batch = []
            self._waiting.clear()
            self.undelivered += len(left)
            self._changed.notify_all()
        if left:
            self._hand_back(left, "it was closed before they could be stored")

    def _hand_back(self, interactions: Sequence[Interaction], why: str) -> None:
        if self._on_undelivered is None:
            if self._losses.is_due():
                self._losses.warn("interactions were given up: %s", why)
            return
        try:
            self._on_undelivered(interactions, why)
        except BaseException as failure:
            # The reporter's thread has others to report; of others, sys.exit and Ctrl-C go on.
            if not isinstance(failure, Exception) and (
                self._thread is not threading.current_thread()
            ):
                raise
            logger.exception("on_undelivered failed")
