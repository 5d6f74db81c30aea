"""Connections of asyncio, each of one event loop."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

from recparams_client.forks import require_grpc


class LoopConnection:
    """A channel and its stub, made in the event loop in which they are first used.

    So it may be made where there is no loop yet, as at the top of a module. Once its loop is
    closed, as between two calls of `asyncio.run`, the next loop to use it gets another channel.

    Args:
        make_channel: makes the channel, of grpc.aio.
        make_stub: makes the stub of a channel.
    """

    def __init__(self, make_channel: Callable[[], Any], make_stub: Callable[[Any], Any]) -> None:
        self._make_channel = make_channel
        self._make_stub = make_stub
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: int | None = None
        self._channel: Any = None
        self._stub: Any = None

    @property
    def stub(self) -> Any:
        """The stub, for the running loop.

        Raises:
            RuntimeError: another loop uses it, or did so before os.fork().
            RecParamsError: as `require_grpc`.
        """
        loop = asyncio.get_running_loop()
        if self._process not in (None, os.getpid()):
            raise RuntimeError("this client was used before os.fork(): make it in the child")
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "this client is used by another event loop, which still runs: make one for "
                    "each loop, or use RecParamsClient"
                )
            require_grpc()
            self._loop, self._process = loop, os.getpid()
            self._channel = self._make_channel()
            self._stub = self._make_stub(self._channel)
        return self._stub

    async def close(self) -> None:
        """Closes the channel."""
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()
