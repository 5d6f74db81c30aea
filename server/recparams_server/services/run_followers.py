"""Followers of training runs: one reads each run from the database for all who watch it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from recparams.v1 import training_pb2 as pb

LOOK_SECONDS = 0.25
UNDER_WAY = (pb.TRAINING_RUN_STATUS_PENDING, pb.TRAINING_RUN_STATUS_RUNNING)

Look = Callable[[int], Awaitable[pb.TrainingRun]]


class _Follower:
    """What is known of one run.

    Attributes:
        watchers: how many streams want to know.
        run: the run as last read, or None before.
        encoded: the response with it.
        changed: set, and replaced, whenever there is another one; set for good at the end.
        reading: the task that reads it.
    """

    def __init__(self) -> None:
        self.watchers = 0
        self.run: pb.TrainingRun | None = None
        self.encoded = b""
        self.changed = asyncio.Event()
        self.reading: asyncio.Task[None] | None = None

    async def read(self, look: Look, run_id: int) -> None:
        """Reads the run again and again until it has ended."""
        try:
            while self.run is None or self.run.status in UNDER_WAY:
                if self.run is not None:
                    await asyncio.sleep(LOOK_SECONDS)
                run = await look(run_id)
                if run != self.run:
                    self.encoded = pb.WatchTrainingRunResponse(run=run).SerializeToString()
                    self.run = run
                    self.changed.set()
                    self.changed = asyncio.Event()
        finally:
            self.changed.set()


class RunFollowers:
    """Followers of the runs that are watched.

    Args:
        look: reads a run from the database. Raises ServiceError if there is none.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._followers: dict[int, _Follower] = {}

    async def watch(self, run_id: int) -> AsyncGenerator[bytes, None]:
        """Yields encoded WatchTrainingRunResponses, one for each change, until the run has ended.

        Raises what reading it raises.
        """
        follower = self._followers.get(run_id)
        if follower is None or follower.reading is None or follower.reading.done():
            follower = self._followers[run_id] = _Follower()
            follower.reading = asyncio.create_task(follower.read(self._look, run_id))
        assert follower.reading is not None  # noqa: S101 - set where it was made
        follower.watchers += 1
        sent = b""
        try:
            while True:
                changed, encoded = follower.changed, follower.encoded
                if encoded != sent:
                    sent = encoded
                    yield encoded
                elif follower.reading.done():
                    follower.reading.result()
                    return
                else:
                    await changed.wait()
        finally:
            follower.watchers -= 1
            if not follower.watchers:
                follower.reading.cancel()
                if self._followers.get(run_id) is follower:
                    del self._followers[run_id]
