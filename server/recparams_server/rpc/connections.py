"""Connections of a server, which gRPC keeps to itself."""

import contextlib
import os
import socket
import stat
from pathlib import Path
from urllib.parse import unquote

_OPEN_FILES = Path("/dev/fd")
_IPV4_IN_IPV6 = "::ffff:"


def close_connection(peer: str) -> bool:
    """Closes the TCP connection to a peer, for which gRPC has no call.

    All calls on it end, and gRPC lets go of what it held for them.

    Args:
        peer: as gRPC has it, such as ipv4:10.0.0.7:5312 or ipv6:%5B::1%5D:5312.

    Returns True if there was one.
    """
    _, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    wanted = host.strip("[]"), port
    # A socket that ends in between is no longer there, or refuses to say who was at its end.
    for file in list(_OPEN_FILES.iterdir()):
        with contextlib.suppress(OSError):
            number = int(file.name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as one:
                if _address(one.getpeername()) == wanted:
                    one.shutdown(socket.SHUT_RDWR)
                    return True
    return False


def _address(name: object) -> tuple[str, str] | None:
    if not isinstance(name, tuple):
        return None
    return str(name[0]).removeprefix(_IPV4_IN_IPV6), str(name[1])
