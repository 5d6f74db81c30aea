"""The calls by which the reporter records batches, and what follows from how they end."""

import re
import time
from collections.abc import Callable, Sequence

import grpc

from recparams_client.conversion import record_message
from recparams_client.errors import RecParamsError
from recparams_client.sync import RecParamsClient
from recparams_client.types import Interaction

BATCH = 500
LARGEST_INTERACTION = 4096
"""Bytes; a batch of them fits into what a server takes by default."""

_SHORTEST_CALL = 0.05
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
    }
)
_UNCLEAR = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
_POSITION = re.compile(r"interactions\[(\d+)\]")


Settle = Callable[[list[Interaction], Sequence[Interaction], str | None], None]


class Delivery:
    """The recording of batches.

    Args:
        client: to record by.
        retry_seconds: seconds for which errors that may not pass are tried again.
        settle: takes interactions out of a batch: as delivered, or as given up for a reason.
        time_left: returns the seconds that are left, 0 if none are, or None without an end.

    Attributes:
        size: most interactions that the next batch may have.
    """

    def __init__(
        self,
        client: RecParamsClient,
        retry_seconds: float,
        settle: Settle,
        time_left: Callable[[], float | None],
    ) -> None:
        self._client = client
        self._retry_seconds = retry_seconds
        self._settle = settle
        self._time_left = time_left
        self._unclear_until: float | None = None
        self.size = BATCH

    def send(self, batch: list[Interaction]) -> str:
        """Records a batch, gives up what is refused, and leaves in it what is to be tried again.

        Returns:
            The reason to try again; empty if there is none.
        """
        for one, why in _unsendable(batch):
            self._settle(batch, [one], why)
        while batch:
            try:
                self._record(batch)
            except RecParamsError as failure:
                if failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    # Perhaps the message was larger than the server takes.
                    self.size = max(1, len(batch) // 2)
                if failure.code in _PASSING:
                    return str(failure)
                if failure.code in _UNCLEAR:
                    return self._try_again(batch, str(failure))
                wrong = {
                    int(found.group(1))
                    for violation in failure.violations
                    if (found := _POSITION.match(violation.field))
                }
                refused = [one for i, one in enumerate(batch) if i in wrong] or batch
                self._settle(batch, refused, str(failure))
            except Exception as failure:
                return self._try_again(batch, repr(failure))
            else:
                self._settle(batch, batch, None)
                self.size = min(BATCH, 2 * self.size)
        self._unclear_until = None
        return ""

    def _try_again(self, batch: list[Interaction], problem: str) -> str:
        """Returns the reason to try again, or, if that was done for long, sends one by one."""
        now = time.monotonic()
        if self._unclear_until is None:
            self._unclear_until = now + self._retry_seconds
        if now < self._unclear_until:
            return problem
        for one in list(batch):
            if self._time_left() == 0:
                return problem
            try:
                self._record([one])
            except RecParamsError as failure:
                if failure.code in _PASSING:
                    return str(failure)
                self._settle(batch, [one], str(failure))
            except Exception as failure:
                self._settle(batch, [one], repr(failure))
            else:
                self._settle(batch, [one], None)
        self._unclear_until = None
        return ""

    def _record(self, interactions: Sequence[Interaction]) -> None:
        left = self._time_left()
        timeout = None if left is None else max(_SHORTEST_CALL, left)
        self._client.record_interactions(interactions, timeout=timeout)


def _unsendable(batch: Sequence[Interaction]) -> list[tuple[Interaction, str]]:
    """Returns those of a batch that no message can be made of, each with the reason."""
    found = []
    for one in batch:
        try:
            size = record_message([one]).ByteSize()
        except Exception as failure:
            found.append((one, str(failure)))
        else:
            if size > LARGEST_INTERACTION:
                found.append((one, f"it has {size} bytes, more than {LARGEST_INTERACTION}"))
    return found
