"""Long work of many calls, a turn at a time, so that others are answered in between."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import TypeVar
from weakref import WeakKeyDictionary

TURN_SECONDS = 0.002

_T = TypeVar("_T")
_Queue = deque["asyncio.Future[None]"]
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
    loop = asyncio.get_running_loop()
    queue = _queues.setdefault(loop, deque())
    given = loop.create_future()
    queue.append(given)
    if len(queue) == 1:
        loop.call_soon(_give, loop, queue)
    await given


def _give(loop: asyncio.AbstractEventLoop, queue: _Queue) -> None:
    """Gives the turn to the first who still waits for it."""
    while queue:
        waiting = queue.popleft()
        if not waiting.done():
            waiting.set_result(None)
            break
    if queue:
        loop.call_soon(_give, loop, queue)
