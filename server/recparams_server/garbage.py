"""Garbage collection in portions, none of which holds callers up.

Python looks through all that is not frozen at once: with a thousand watchers that takes tens of
milliseconds. Here what outlives a look is frozen before there is much of it.
"""

import asyncio
import gc
import sys
from typing import Any

COLLECT_AFTER = 700, 2, 1
"""New objects, collections of these, and of the next older ones, after which there is another."""
MOST_LEFT = 2_500
"""Objects that a whole collection leaves for the next one to look through again."""
MOST_NEW = 2_000
"""New objects that wait for a collection, as far as `LOOK_SECONDS` between two looks allow."""
LOOK_SECONDS = 0.02
_OLDEST = 2


class Portions:
    """Freezes what there is, and later what outlives collections once it is more than `MOST_LEFT`.

    Frozen objects are freed as soon as nothing refers to them, but as parts of cycles they are not.
    So once twice as much memory is in use as after the last look through everything, there is
    another one.

    Attributes:
        looks: looks through everything since the start.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._looking = False
        self._blocks = 0

    def start(self) -> None:
        """Begins, with all that there is frozen."""
        gc.collect()
        gc.freeze()
        # Python waits for a quarter as many new objects as the last collection left: now none.
        gc.collect()
        gc.set_threshold(*COLLECT_AFTER)
        self._blocks = sys.getallocatedblocks()
        gc.callbacks.append(self._after)

    async def follow(self) -> None:
        """Collects what Python leaves alone until cancelled.

        Python counts the objects made less those freed: where as many are freed as are made, new
        ones pile up.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if sum(len(gc.get_objects(age)) for age in range(_OLDEST)) > MOST_NEW:
                gc.collect()

    def _after(self, phase: str, info: dict[str, Any]) -> None:
        if phase != "stop" or info["generation"] != _OLDEST:
            return
        if len(gc.get_objects(_OLDEST)) <= MOST_LEFT:
            return
        gc.freeze()
        blocks = sys.getallocatedblocks()
        if self._looking:
            self._looking = False
            self._blocks = blocks
        elif blocks > 2 * self._blocks:
            # The next collection looks through all of it.
            gc.unfreeze()
            self.looks += 1
            self._looking = True
