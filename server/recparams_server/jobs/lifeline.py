"""The pipes by which jobs notice that their server is gone, even where it was killed."""

import os
import selectors
import signal
import threading

CLOSED = -1


class Lifeline:
    """A pipe of which this process alone holds the writing end, and never writes.

    Attributes:
        reader: the end that jobs are given; no descriptor of anything once it is closed.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def close(self) -> None:
        """Ends the jobs that are left; again, it does nothing."""
        if self.reader != CLOSED:
            os.close(self._writer)
            os.close(self.reader)
            self.reader = CLOSED


def end_with(*readers: int) -> None:
    """Has this process killed once nobody holds the other end of one of these pipes.

    A killed trainer loses its connections, so that Postgres rolls back what it has not committed.
    """
    selector = selectors.DefaultSelector()
    for reader in readers:
        selector.register(reader, selectors.EVENT_READ)

    def wait() -> None:
        selector.select()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
