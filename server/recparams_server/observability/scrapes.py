"""The HTTP server of the metrics: one thread, however many connect and say nothing."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from prometheus_client import make_wsgi_app

MOST_CONNECTIONS = 64
LARGEST_REQUEST = 16 * 1024
REQUEST_SECONDS = 5.0
"""Time for sending a request, and again for taking the answer."""
_EVERY_ADDRESS = "::"


def start(port: int, addresses: list[str]) -> None:
    """Serves the metrics of this process from a thread of their own.

    Args:
        port: 0 takes a free one.
        addresses: numeric ones of this machine; `::` is every one, of IPv4 too.

    Raises OSError if the port is taken on one of them.
    """
    started: Future[None] = Future()
    work = threading.Thread(
        target=lambda: asyncio.run(_serve(port, addresses, started)), name="metrics", daemon=True
    )
    work.start()
    started.result()


async def _serve(port: int, addresses: list[str], started: Future[None]) -> None:
    scrapes = _Scrapes()
    try:
        server = await asyncio.start_server(
            scrapes.answer,
            None if _EVERY_ADDRESS in addresses else addresses,
            port,
            limit=LARGEST_REQUEST,
        )
    except OSError as failure:
        started.set_exception(failure)
        return
    started.set_result(None)
    async with server:
        await server.serve_forever()


class _Scrapes:
    """Answers a request of each connection, and ends it."""

    def __init__(self) -> None:
        self._app: Any = make_wsgi_app()
        self._open: dict[asyncio.Task[None], None] = {}

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one connection; where there are too many, the oldest one ends for it."""
        own = asyncio.current_task()
        assert own is not None  # noqa: S101 - asyncio makes one for each connection
        if len(self._open) >= MOST_CONNECTIONS:
            next(iter(self._open)).cancel()
        self._open[own] = None
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._response(head.decode("latin-1")))
            async with asyncio.timeout(REQUEST_SECONDS):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError, asyncio.CancelledError):
            # Too late, too long, cut off, or no request at all.
            writer.transport.abort()
        finally:
            self._open.pop(own)

    def _response(self, head: str) -> bytes:
        """Returns the response to a request's line and headers. Raises ValueError if it is none."""
        line, *rest = head.split("\r\n")
        method, target, _ = line.split(" ")
        path, _, query = target.partition("?")
        headers = dict(one.lower().split(":", 1) for one in rest if ":" in one)
        said: list[str] = []

        def begin(status: str, fields: list[tuple[str, str]]) -> None:
            said.append(f"HTTP/1.0 {status}\r\n")
            said.extend(f"{name}: {value}\r\n" for name, value in fields)

        (body,) = self._app(
            {
                "REQUEST_METHOD": method,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "HTTP_ACCEPT": headers.get("accept", "").strip(),
                "HTTP_ACCEPT_ENCODING": headers.get("accept-encoding", "").strip(),
            },
            begin,
        )
        said.append(f"Content-Length: {len(body)}\r\n\r\n")
        return "".join(said).encode("latin-1") + bytes(body)
