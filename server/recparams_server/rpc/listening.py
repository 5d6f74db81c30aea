"""The addresses that a server listens on."""

import errno
import socket
from collections.abc import Callable
from ipaddress import ip_address


class ListenError(Exception):
    """A port that cannot be listened on; the message is one line that says why."""


def with_port(host: str, port: int) -> str:
    """Returns host:port, with brackets around a numeric IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def numeric_addresses(host: str) -> list[str]:
    """Returns the addresses that a host stands for, of both families. Raises OSError if none."""
    try:
        ip_address(host)
    except ValueError:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))
    return [host]


def listen(host: str, port: int, add: Callable[[str], int]) -> tuple[int, list[str]]:
    """Listens on every address of a host that this machine has.

    gRPC alone would listen on some of a name's addresses while another server has the rest.

    Args:
        host: a name or a numeric address without brackets.
        port: 0 takes a free one, the same on all addresses.
        add: listens on address:port and returns the port; raises RuntimeError if it cannot.

    Returns:
        (the port, the addresses).

    Raises:
        ListenError: none of the addresses is this machine's, or one is taken.
    """
    try:
        addresses = numeric_addresses(host)
    except OSError as unknown:
        raise refusal(host, port, unknown) from None
    listening: list[str] = []
    reason: OSError | RuntimeError | None = None
    for address in addresses:
        try:
            port = add(with_port(address, port))
            listening.append(address)
        except RuntimeError as failure:
            reason = _reason_against(address, port) or failure
            if isinstance(reason, OSError) and reason.errno == errno.EADDRINUSE:
                raise refusal(host, port, reason) from None
    if reason is not None and not listening:
        raise refusal(host, port, reason)
    return port, listening


def _reason_against(address: str, port: int) -> OSError | None:
    """Returns what the system has against listening on a numeric address, which gRPC keeps back."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # Closed connections of an earlier server do not count as another server.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((address, port))
    except OSError as failure:
        return failure
    return None


def refusal(host: str, port: int, reason: OSError | RuntimeError) -> ListenError:
    """Returns the error for a port that cannot be listened on, for a reason."""
    where = f"cannot listen on {with_port(host, port)}"
    if not isinstance(reason, OSError):
        return ListenError(f"{where}: {reason}")
    if reason.errno == errno.EADDRINUSE:
        return ListenError(f"{where}: is another server there? (--port takes another)")
    return ListenError(f"{where}: {reason.strerror or reason}")
