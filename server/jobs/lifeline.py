"""The pipe by which jobs notice that their server is gone, even where it was killed."""

import os
import signal
import threading

VARIABLE = "RECPARAMS_LIFELINE"
"""Environment variable with the number of the pipe's end that a job reads."""


class Lifeline:
    """A pipe of which this process alone holds the writing end, and never writes.

    Attributes:
        reader: the end that jobs are given.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._closed = False

    def environment(self) -> dict[str, str]:
        """Returns the environment variables of a job that is given `reader`."""
        return {VARIABLE: str(self.reader)}

    def close(self) -> None:
        """Ends the jobs that are left; again, it does nothing."""
        if not self._closed:
            self._closed = True
            os.close(self._writer)
            os.close(self.reader)


def end_with_server() -> None:
    """Has this process killed once its server is gone; without a lifeline it does nothing.

    A killed trainer loses its connections, so that Postgres rolls back what it has not committed.
    """
    number = os.environ.pop(VARIABLE, None)
    if number is None:
        return
    reader = int(number)
    os.set_inheritable(reader, False)

    def wait() -> None:
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
