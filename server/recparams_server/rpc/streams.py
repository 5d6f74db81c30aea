"""Endless streams: how many there may be, and the end of those that nobody reads."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import grpc

from recparams_server.contract.errors import ServiceError, error, exhausted
from recparams_server.turns import turn

LARGE_BYTES = 16 * 1024
"""Messages above this size are sent to few at a time: gRPC copies each until it is taken."""
MOST_LARGE, MOST_LARGE_OF_CALLER = 64, 8
RETRY_SECONDS = 5.0

Stream = Callable[[Any, Any], AsyncIterator[Any]]


class SlowReaderError(ServiceError):
    """A caller that took nothing of a stream for `seconds`."""

    def __init__(self, seconds: float) -> None:
        said = f"nothing was taken of the stream for {seconds:g} s"
        found = error(grpc.StatusCode.ABORTED, "SLOW_READER", said)
        super().__init__(found.code, found.message, found.details)


class _Caller:
    """The streams of one caller: how many are open, and room for those sent something large."""

    def __init__(self) -> None:
        self.open = 0
        self.large = asyncio.Semaphore(MOST_LARGE_OF_CALLER)


class Streams:
    """The endless streams of a server.

    Args:
        most: streams at a time.
        most_of_caller: the same of one caller.
        stall: seconds for which a caller may take nothing of what it is sent.
    """

    def __init__(self, most: int, most_of_caller: int, stall: float) -> None:
        self._most = most
        self._most_of_caller = most_of_caller
        self._stall = stall
        self._open = 0
        self._callers: dict[str, _Caller] = {}
        self._large = asyncio.Semaphore(MOST_LARGE)

    def around(self, handler: Stream, caller_of: Callable[[Any], str]) -> Stream:
        """Returns a handler that holds a stream to the limits.

        Args:
            handler: yields encoded messages, each as parts that many streams may share.
            caller_of: returns the name of a call's caller.
        """

        async def push(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._opened(caller_of(context)) as caller:
                async for parts in handler(request, context):
                    await self._write(context, caller, parts)
            # All is written: yet what gRPC and its interceptors take for a stream is a generator.
            rest: tuple[Any, ...] = ()
            for response in rest:
                yield response

        return push

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[_Caller]:
        """Counts a stream. Raises RESOURCE_EXHAUSTED above a limit."""
        caller = self._callers.get(name) or _Caller()
        if self._open >= self._most:
            raise _too_many(f"{self._most} streams are open at this server")
        if caller.open >= self._most_of_caller:
            raise _too_many(f"this caller has {self._most_of_caller} streams open at this server")
        self._callers[name] = caller
        self._open += 1
        caller.open += 1
        try:
            yield caller
        finally:
            self._open -= 1
            caller.open -= 1
            if not caller.open:
                del self._callers[name]

    async def _write(self, context: Any, caller: _Caller, parts: Sequence[bytes]) -> None:
        """Sends a message. Raises ABORTED if it is not taken in time."""
        async with contextlib.AsyncExitStack() as held:
            if sum(map(len, parts)) > LARGE_BYTES:
                try:
                    async with asyncio.timeout(self._stall):
                        await held.enter_async_context(caller.large)
                        await held.enter_async_context(self._large)
                    # gRPC copies it at once, which takes a millisecond for each MiB or so.
                    await turn()
                except TimeoutError:
                    raise _too_many("others take nothing of what they are sent") from None
            try:
                async with asyncio.timeout(self._stall):
                    await context.write(joined(parts))
            except TimeoutError:
                raise SlowReaderError(self._stall) from None
            except Exception as failure:
                # gRPC fails so where the caller has gone, just before it cancels the call.
                raise asyncio.CancelledError from failure


def joined(parts: Sequence[bytes]) -> bytes:
    """Returns a message that its parts make up; the part itself where there is one."""
    return b"".join(parts)


def _too_many(reason: str) -> ServiceError:
    return exhausted("TOO_MANY_STREAMS", f"{reason}: try again later", RETRY_SECONDS)
