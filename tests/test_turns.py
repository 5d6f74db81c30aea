"""Long work takes turns: in a round of the event loop one of those who do it goes on."""

import asyncio
import time
from collections.abc import Iterator

from recparams_server.rpc.turns import TURN_SECONDS, in_turns

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
