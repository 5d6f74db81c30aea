"""Talking to a server from the command line: address, key, and errors as one clear line."""

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc
from google.rpc import error_details_pb2, status_pb2

KEY_FILE = Path(".recparams") / "admin-key"
SECONDS = 30.0
HEADER = "x-admin-key"
_CHANNEL = (
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    ALREADY_RUNNING = 3
    UNREACHABLE = 4
    CANCELLED = 5
    GATED = 6
    REFUSED = 7


_EXITS = {
    grpc.StatusCode.INVALID_ARGUMENT: Exit.BAD_INPUT,
    grpc.StatusCode.NOT_FOUND: Exit.BAD_INPUT,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.BAD_INPUT,
    grpc.StatusCode.UNAVAILABLE: Exit.UNREACHABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNREACHABLE,
    grpc.StatusCode.UNAUTHENTICATED: Exit.REFUSED,
    grpc.StatusCode.PERMISSION_DENIED: Exit.REFUSED,
}


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --address and --admin-key."""
    command = click.option(
        "--admin-key",
        envvar="RECPARAMS_ADMIN_KEY",
        help=f"Admin key. [RECPARAMS_ADMIN_KEY; default: what {KEY_FILE} holds, where a "
        "development server writes the one it made up]",
    )(command)
    return click.option(
        "--address",
        envvar="RECPARAMS_ADDRESS",
        default="127.0.0.1:50051",
        show_default=True,
        help="host:port of the server. [RECPARAMS_ADDRESS]",
    )(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def admin_metadata(admin_key: str | None) -> tuple[tuple[str, str], ...]:
    """Metadata that lets admin calls in, if there is a key anywhere.

    A key that cannot be sent ends the program as a wrong one would.
    """
    folder = os.environ.get("RECPARAMS_DATA_DIR")
    file = Path(folder) / KEY_FILE.name if folder else KEY_FILE
    if admin_key is None and file.is_file():
        admin_key = file.read_text().strip()
    if admin_key and not (admin_key.isascii() and admin_key.isprintable()):
        click.echo("recparams: the admin key has characters other than printable ASCII", err=True)
        raise SystemExit(Exit.REFUSED)
    return ((HEADER, admin_key),) if admin_key else ()


@contextlib.contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """A channel; what goes wrong with a call ends the program with one line and an exit code."""
    with grpc.insecure_channel(address, options=_CHANNEL) as opened:
        try:
            yield opened
        except grpc.RpcError as raised:
            fail(raised, address)


def admin_call(
    service: Callable[[grpc.Channel], Any],
    method: str,
    request: Any,
    address: str,
    admin_key: str | None,
    timeout: float = SECONDS,
) -> Any:
    """The answer to one unary call of a service's stub; errors as `channel`."""
    with channel(address) as opened:
        call = getattr(service(opened), method)
        return call(request, metadata=admin_metadata(admin_key), timeout=timeout)


def reason_of(raised: Any) -> str:
    """The machine-readable reason of an error, or an empty text."""
    info = error_details_pb2.ErrorInfo()
    for detail in _status(raised).details:
        detail.Unpack(info)
    return str(info.reason)


def fail(raised: Any, address: str) -> NoReturn:
    """Says what a failed call said and ends the program."""
    code = raised.code()
    lines = []
    bad = error_details_pb2.BadRequest()
    for detail in _status(raised).details:
        if detail.Unpack(bad):
            lines += [f"{v.field}: {v.description}" for v in bad.field_violations]
    if not lines:
        lines = [raised.details()]
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        lines = [f"{address}: {lines[0]}"]
    for line in lines:
        click.echo(f"recparams: {line}", err=True)
    exit_code = _EXITS.get(code, Exit.FAILED)
    if reason_of(raised) == "TRAINING_ALREADY_RUNNING":
        exit_code = Exit.ALREADY_RUNNING
    raise SystemExit(exit_code)


def _status(raised: Any) -> status_pb2.Status:
    status = status_pb2.Status()
    for key, value in raised.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    return status
