"""The longest stalls of an event loop, as precisely as a loop can tell."""

import asyncio
import json
import time

TICK = 0.001
"""Seconds between two looks, which take some hundredths of a core."""


class LoopMeter:
    """Measures the stalls of the running event loop from its first `take` on."""

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0
        self._following: asyncio.Task[None] | None = None

    def take(self) -> bytes:
        """Returns the longest stalls since the last time, in seconds, as JSON.

        `wall` is by the clock, `cpu` the processor time of the loop's thread between two looks:
        what other processes on the core take is in the first alone.
        """
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        found = {"wall": self._wall, "cpu": self._cpu}
        self._wall = self._cpu = 0.0
        return json.dumps(found).encode()

    async def _follow(self) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(TICK)
            wall_before, cpu_before = wall, cpu
            wall, cpu = time.perf_counter(), time.thread_time()
            self._wall = max(self._wall, wall - wall_before - TICK)
            self._cpu = max(self._cpu, cpu - cpu_before)
