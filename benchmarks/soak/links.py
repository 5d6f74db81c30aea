"""Networks that can be cut: `python -m benchmarks.soak.links LISTEN=TARGET ...` is the proxy.

Each link takes connections on a port of 127.0.0.1 and passes their bytes on to host:port or to a
Unix socket. Commands come as JSON lines, {"links": [0], "mode": "hold", "delay": 0}, and each is
answered by an empty line once it is in force:

- open: bytes pass, `delay` seconds late in each direction;
- reset: open connections are reset, and new ones as soon as they are made;
- hold: connections stay, new ones are accepted, and no byte passes until the mode changes.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from recparams_simulation.demo_server import end, free_port

PIECE_BYTES = 64 * 1024
END_SECONDS = 10.0
PIECES = 256
"""Most pieces of a direction under way; the sender waits then."""


class Link:
    """One way through the network."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._mode = "open"
        self._delay = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def set(self, mode: str, delay: float) -> None:
        """Changes how bytes pass, also on connections that are open."""
        self._mode, self._delay = mode, delay
        if mode == "hold":
            self._flows.clear()
        else:
            self._flows.set()
        if mode == "reset":
            for writer in self._writers:
                _reset(writer)

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Passes a connection's bytes on, both ways, until either side ends it."""
        beyond = None
        self._writers.add(writer)
        try:
            await self._flows.wait()
            if self._mode == "reset":
                return
            back, beyond = await self._connect()
            self._writers.add(beyond)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, beyond))
                group.create_task(self._pass(back, writer))
        except* (OSError, RuntimeError):
            # A side is gone; RuntimeError is uvloop's word for writing to one that is closed.
            pass
        finally:
            for one in (writer, beyond):
                if one is not None:
                    self._writers.discard(one)
                    _reset(one)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("/"):
            return await asyncio.open_unix_connection(self._target)
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)
        now = asyncio.get_running_loop().time

        async def deliver() -> None:
            while True:
                due, piece = await pieces.get()
                await asyncio.sleep(max(0.0, due - now()))
                await self._flows.wait()
                if not piece:
                    # One side has ended: nobody here goes on with half a connection.
                    writer.close()
                    await writer.wait_closed()
                    raise ConnectionResetError
                writer.write(piece)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(deliver())
            while True:
                piece = await reader.read(PIECE_BYTES)
                await pieces.put((now() + self._delay, piece))
                if not piece:
                    return


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    # ValueError where it is closed already.
    with contextlib.suppress(OSError, ValueError):
        if connection is not None and connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve(arguments: Sequence[str]) -> None:
    links = []
    for argument in arguments:
        port, _, target = argument.partition("=")
        links.append(link := Link(target))
        await asyncio.start_server(link.accept, "127.0.0.1", int(port))
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    print(flush=True)
    while line := await commands.readline():
        command = json.loads(line)
        for number in command["links"]:
            links[number].set(command["mode"], command["delay"])
        print(flush=True)
    # Connections that are still there end with it.
    os._exit(0)


@dataclass(frozen=True)
class Network:
    """The proxy as its owner sees it: a link for each target, by position.

    Attributes:
        ports: where to reach the targets.
        process: the proxy, which ends with its standard input.
    """

    ports: tuple[int, ...]
    process: "subprocess.Popen[str]"

    @classmethod
    def start(cls, targets: Sequence[str]) -> "Network":
        """Links to host:port or to a Unix socket."""
        ports = tuple(free_port("127.0.0.1", 0) for _ in targets)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.soak.links"),
                *(f"{port}={target}" for port, target in zip(ports, targets, strict=True)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        network = cls(ports, process)
        network._wait()
        return network

    def set(self, links: Sequence[int], mode: str, *, delay: float = 0.0) -> None:
        """Changes links; returns when that is in force."""
        command: dict[str, Any] = {"links": list(links), "mode": mode, "delay": delay}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        self._wait()

    def _wait(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise RuntimeError("the proxy ended")

    def stop(self) -> None:
        """Ends the proxy."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            end(self.process)
        self.process.stdout.close()


if __name__ == "__main__":
    # Ctrl-C is for its owner, which takes things down in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(_serve(sys.argv[1:]))
