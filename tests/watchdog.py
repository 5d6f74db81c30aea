"""A bound on what pytest-timeout leaves without one: the teardown of a test that has failed."""

import faulthandler
import os
import signal
import sys
from collections.abc import Generator
from typing import Any

import pytest

TEARDOWN_SECONDS = 120.0
"""Time for the fixtures of a test, or of the session, to be taken down."""
LAST_SECONDS = 600.0
"""Time for a test beyond its own limit, and for the end of the session."""


class Watchdog:
    """Fails a teardown that hangs, and ends a process that hangs all the same.

    pytest-timeout's alarm rings once for each test, and not at all once the test has failed.

    Args:
        limit: seconds for a test without a limit of its own.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        # While tests run, what is written to the usual one is kept for their reports.
        self._stderr = os.dup(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)

    def _end_process_in(self, seconds: float) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stderr)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Ends the process where a test does not, in spite of its alarms."""
        marker = item.get_closest_marker("timeout")
        limit = self._limit if marker is None else float(marker.args[0])
        if limit:
            self._end_process_in(limit + LAST_SECONDS)
        try:
            return (yield)
        finally:
            self._end_process_in(LAST_SECONDS)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, Any, Any]:
        """Sets an alarm of the teardown's own, which rings again for the next fixture."""

        def ring(*_: Any) -> None:
            pytest.fail(f"the teardown took longer than {TEARDOWN_SECONDS:g} s")

        self._end_process_in(LAST_SECONDS)
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, TEARDOWN_SECONDS, TEARDOWN_SECONDS)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def pytest_enter_pdb(self) -> None:
        """Lets somebody look around for as long as they like."""
        faulthandler.cancel_dump_traceback_later()
