"""Long work takes turns: in a round of the event loop one of those who do it goes on."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from recparams_server.turns import TURN_SECONDS, Waiting, in_turns

WORKERS, PIECES = 5, 4


def slow_pieces() -> Iterator[int]:
    for number in range(PIECES):
        time.sleep(1.5 * TURN_SECONDS)
        yield number


async def test_one_goes_on_in_each_round() -> None:
    rounds: list[list[int]] = [[]]

    async def work(worker: int) -> list[int]:
        found = []
        async for piece in in_turns(slow_pieces()):
            rounds[-1].append(worker)
            found.append(piece)
        return found

    async def count_rounds() -> None:
        while True:
            rounds.append([])
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_rounds())
    found = await asyncio.gather(*map(work, range(WORKERS)))
    counting.cancel()
    assert found == [list(range(PIECES))] * WORKERS
    assert all(len(set(workers)) <= 1 for workers in rounds)


async def per_round(tasks: list[asyncio.Task[None]]) -> list[int]:
    """How many of the tasks ended in each round of the event loop, until all had."""
    found, ended = [], 0
    while ended < len(tasks):
        await asyncio.sleep(0)
        now = sum(task.done() for task in tasks)
        found.append(now - ended)
        ended = now
    return found


@pytest.mark.parametrize("end", ["woken", "cancelled", "late"])
async def test_those_who_wait_go_on_one_in_each_round(end: str) -> None:
    waiting = Waiting(0.01 if end == "late" else 60)
    tasks = [asyncio.create_task(waiting.wait()) for _ in range(WORKERS)]
    await asyncio.sleep(0)
    if end == "cancelled":
        for task in tasks:
            task.cancel()
    if end == "woken":
        waiting.wake()
    async with asyncio.timeout(10):
        assert max(await per_round(tasks)) == 1
    assert [task.cancelled() for task in tasks] == [end == "cancelled"] * WORKERS


async def test_who_is_cancelled_before_its_turn_is_not_woken() -> None:
    waiting = Waiting(60)
    tasks = [asyncio.create_task(waiting.wait()) for _ in range(WORKERS)]
    await asyncio.sleep(0)
    waiting.wake()
    tasks[-1].cancel()
    tasks[0].cancel()
    waiting.wake()
    await asyncio.wait(tasks, timeout=10)
    assert [task.cancelled() for task in tasks] == [True, *[False] * (WORKERS - 2), True]


async def test_who_gives_up_does_not_hold_up_the_others() -> None:
    async def work() -> int:
        return len([piece async for piece in in_turns(slow_pieces())])

    tasks = [asyncio.create_task(work()) for _ in range(WORKERS)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[1::2] == [PIECES] * len(tasks[1::2])
    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
