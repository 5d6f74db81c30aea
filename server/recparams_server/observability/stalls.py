"""Stalls of an event loop: times in which one thing runs, and nobody is answered meanwhile."""

import asyncio
import time

TICK_SECONDS = 0.05
WINDOW_SECONDS = 60.0


class StallMeter:
    """Measures how late an event loop runs what is due, by a timer of its own.

    Args:
        tick: seconds between two looks; a stall seems shorter than it was by up to as much.
        window: a stall is remembered for so many seconds, and forgotten after twice as many.
    """

    def __init__(self, tick: float = TICK_SECONDS, window: float = WINDOW_SECONDS) -> None:
        self._tick = tick
        self._window = window
        self._longest = self._longest_before = 0.0

    @property
    def longest(self) -> float:
        """The longest stall that is remembered, in seconds."""
        return max(self._longest, self._longest_before)

    async def follow(self) -> None:
        """Measures until cancelled."""
        window_ends = time.monotonic() + self._window
        while True:
            due = time.monotonic() + self._tick
            await asyncio.sleep(self._tick)
            now = time.monotonic()
            self._longest = max(self._longest, now - due)
            if now >= window_ends:
                self._longest_before, self._longest = self._longest, 0.0
                window_ends = now + self._window
