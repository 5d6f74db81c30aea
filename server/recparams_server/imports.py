"""Imports of processes that start often: of a command, of a server, of the template of its jobs."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Collects no garbage in the body of a with statement: a tenth of the time of large imports."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def of_a_service() -> Iterator[None]:
    """The same, and structlog is imported in the body without rich, which takes it 0.1 s.

    It would use it for tracebacks that the logs do without
    (recparams_server/observability/logs.py).
    """
    hides = "rich" not in sys.modules
    if hides:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        with uncollected():
            yield
    finally:
        if hides:
            del sys.modules["rich"]
