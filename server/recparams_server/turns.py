"""Long work of many calls, a turn at a time, so that others are answered in between."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import takewhile
from time import perf_counter
from typing import TypeVar
from weakref import WeakKeyDictionary

TURN_SECONDS = 0.001

_T = TypeVar("_T")


class _Turn(asyncio.Future[None]):
    """A turn that somebody waits for. Who is cancelled meanwhile has a turn for that too."""

    is_cancelled = False

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - as its class has it
        if self.done():
            return False
        self.is_cancelled = True
        _line_up([self])
        return True

    def give(self) -> bool:
        """Returns True if it was still waited for."""
        if self.done():
            return False
        if self.is_cancelled:
            super().cancel()
        else:
            self.set_result(None)
        return True


_Queue = deque[_Turn]
_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, _Queue] = WeakKeyDictionary()
"""Those who wait for a turn, by event loop."""


async def in_turns(items: Iterable[_T]) -> AsyncIterator[_T]:
    """Yields items; whenever that has taken `TURN_SECONDS`, other calls have their turn first."""
    if _queues.get(asyncio.get_running_loop()):
        await turn()
    began = perf_counter()
    for item in items:
        yield item
        if perf_counter() - began > TURN_SECONDS:
            await turn()
            began = perf_counter()


async def turn() -> None:
    """Waits for a turn, of which there is one in each round of the event loop.

    Were all to go on in the same round, it would last as long as all their turns.
    """
    given = _Turn(loop=asyncio.get_running_loop())
    _line_up([given])
    await given


class Waiting:
    """Those who wait for something that happens to all of them at once.

    Args:
        seconds: nobody waits for longer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # With the time at which each gives up, the first one first. One timer does for all.
        self._waiting: dict[_Turn, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Waits for a turn after the next `wake`."""
        loop = asyncio.get_running_loop()
        given = _Turn(loop=loop)
        self._waiting[given] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._give_up)
        try:
            await given
        finally:
            self._waiting.pop(given, None)

    def wake(self) -> None:
        """Gives each of those who wait now a turn."""
        waiting, self._waiting = self._waiting, {}
        _line_up(waiting)

    def _give_up(self) -> None:
        """Gives a turn to those who have waited for long enough."""
        loop = asyncio.get_running_loop()
        late = list(takewhile(lambda one: self._waiting[one] <= loop.time(), self._waiting))
        for one in late:
            del self._waiting[one]
        _line_up(late)
        first = next(iter(self._waiting.values()), None)
        self._timer = None if first is None else loop.call_at(first, self._give_up)


def _line_up(turns: Iterable[_Turn]) -> None:
    """Gives turns, one in each round of the event loop, to those who wait for them."""
    loop = asyncio.get_running_loop()
    queue = _queues.setdefault(loop, deque())
    is_moving = bool(queue)
    queue.extend(turns)
    if queue and not is_moving:
        loop.call_soon(_give, loop, queue)


def _give(loop: asyncio.AbstractEventLoop, queue: _Queue) -> None:
    """Gives the turn to the first who still waits for it."""
    while queue and not queue.popleft().give():
        pass
    if queue:
        loop.call_soon(_give, loop, queue)
