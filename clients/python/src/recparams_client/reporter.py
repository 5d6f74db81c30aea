"""Reports of interactions in the background, so that no request waits for the database."""

import atexit
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import grpc

from recparams_client.closing import Closing
from recparams_client.conversion import record_message
from recparams_client.errors import RecParamsError
from recparams_client.sync import RecParamsClient
from recparams_client.types import Interaction

logger = logging.getLogger(__name__)
BATCH = 500
CAPACITY = 10_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_POSITION = re.compile(r"interactions\[(\d+)\]")

OnUndelivered = Callable[[Sequence[Interaction], str], None]


class InteractionReporter(Closing):
    """A queue of interactions that a thread of its own records in batches. Threads may share one.

    Those that the server cannot take for now are tried again until they are stored: interactions
    are safe to repeat, so none is counted twice. Those that the server refuses, or that find no
    room, are counted and handed to `on_undelivered`. At the end of the program those left are
    sent, for up to `flush_seconds`.

    Args:
        client: to record by; it is not closed here.
        capacity: most interactions that wait, 1 or more.
        interval: seconds after which a batch is sent, however small.
        flush_seconds: seconds that `close`, and the end of the program, wait for those left.
        on_undelivered: called with interactions that are given up and the reason, in the reporter's
            thread, or in that of `report` if there is no room.

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
        on_undelivered: OnUndelivered | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be 1 or more, not {capacity}")
        self._client = client
        self._capacity = capacity
        self._interval = interval
        self._flush_seconds = flush_seconds
        self._on_undelivered = on_undelivered
        self._waiting: deque[Interaction] = deque()
        self._sending = 0
        self._changed = threading.Condition()
        self._urgent = False
        self._deadline: float | None = None
        self.delivered = 0
        self.undelivered = 0
        self._thread = threading.Thread(target=self._run, name="recparams-report", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def report(self, interaction: Interaction) -> bool:
        """Queues an interaction. Returns False, at once, if there is no room or it is closed."""
        with self._changed:
            room = len(self._waiting) + self._sending < self._capacity and self._deadline is None
            if room:
                self._waiting.append(interaction)
                self._changed.notify_all()
        if not room:
            self._give_up([interaction], "there is no room")
        return room

    def flush(self, timeout: float | None = None) -> bool:
        """Sends the queue at once and waits until all is stored or given up.

        Returns False if that takes longer than `timeout` seconds.
        """
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._waiting or self._sending), timeout)

    def close(self) -> None:
        """Sends the queue, for up to `flush_seconds`, and gives up what remains then."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + self._flush_seconds
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while batch := self._next():
            problem = self._send(batch)
            pause = min(2 * pause, _LONGEST_PAUSE) if problem else _FIRST_PAUSE
            with self._changed:
                self._sending = 0
                if problem:
                    self._waiting.extendleft(reversed(batch))
                    if self._late():
                        break
                    # Spread out, so that not all callers come back to a server at once.
                    self._changed.wait_for(
                        self._late,
                        pause * random.uniform(0.5, 1.5),  # noqa: S311
                    )
                if not self._waiting:
                    self._urgent = False
                self._changed.notify_all()
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        if left:
            self._give_up(left, "it was closed before they could be stored")

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _next(self) -> list[Interaction]:
        """Returns the next batch; empty when the reporter is closed and there is none left."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._deadline is not None)
            self._changed.wait_for(
                lambda: len(self._waiting) >= BATCH or self._urgent or self._deadline is not None,
                self._interval,
            )
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._sending = len(batch)
            return batch

    def _send(self, batch: list[Interaction]) -> str:
        """Records a batch, gives up what is refused, and leaves in it what is to be tried again.

        Returns:
            The reason to try again; empty if there is none.
        """
        while batch:
            try:
                self._client.record_interactions(batch, timeout=self._time_left())
            except RecParamsError as failure:
                if failure.code in _PASSING:
                    return str(failure)
                wrong = {
                    int(found.group(1))
                    for violation in failure.violations
                    if (found := _POSITION.match(violation.field))
                } or set(range(len(batch)))
                self._give_up([batch[i] for i in sorted(wrong)], str(failure))
                batch[:] = [one for i, one in enumerate(batch) if i not in wrong]
            except ValueError as failure:
                # Of a name that does not exist or an empty token: nobody says whose, so one by one.
                wrong_ones = _unsendable(batch)
                if not wrong_ones:
                    # The client is closed.
                    return str(failure)
                self._give_up(wrong_ones, str(failure))
            else:
                self.delivered += len(batch)
                return ""
        return ""

    def _time_left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.05, self._deadline - time.monotonic())

    def _give_up(self, interactions: Sequence[Interaction], why: str) -> None:
        with self._changed:
            self.undelivered += len(interactions)
        if self._on_undelivered is not None:
            try:
                self._on_undelivered(interactions, why)
            except Exception:
                # The thread has others to report.
                logger.exception("on_undelivered failed")


def _unsendable(batch: list[Interaction]) -> list[Interaction]:
    """Removes those from a batch that no message can be made of, and returns them."""
    wrong = []
    for one in list(batch):
        try:
            record_message([one])
        except ValueError:
            wrong.append(one)
            batch.remove(one)
    return wrong
