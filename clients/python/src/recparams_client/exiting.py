"""The end of a program by SIGTERM, which by default sends nothing that is left."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Has SIGTERM end the program as ``sys.exit(143)`` does, within a with statement.

    So with statements end and reporters send what is left. Further signals are ignored then, since
    they would interrupt that. A handler that the program has of its own stays; it has to end the
    program by ``sys.exit`` itself. Only the main thread may use this, as all of `signal`.

    Raises:
        ValueError: this is not the main thread.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:
        yield
        return
    exits = False

    def leave(number: int, _: FrameType | None) -> NoReturn:
        nonlocal exits
        exits = True
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if not exits:
            signal.signal(signal.SIGTERM, before)
