"""Calls to a server from the command line: address, key, TLS and errors."""

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import click
import grpc
from google.rpc import error_details_pb2, status_pb2

from recparams_server.contract.development_files import ADDRESS_FILE, ADMIN_KEY_FILE
from recparams_server.contract.headers import ADMIN_KEY_HEADER

DEFAULT_ADDRESS = "127.0.0.1:50051"
FOLDERS = Path(".recparams"), Path(".recparams") / "demo"
"""Where a development server and the demo leave their address and key."""
SECONDS = 30.0
_TLS_FILES = {
    "ca": "PEM file of certificates that the server's must lead to; has the connection use TLS.",
    "cert": "PEM file of this client's certificate, where the server asks for one.",
    "key": "PEM file of the key to it.",
}
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
    """Adds --address, --admin-key, and for TLS --ca, --cert and --key, which `channel` finds."""
    for name, help_text in reversed(_TLS_FILES.items()):
        command = click.option(
            f"--{name}",
            envvar=f"RECPARAMS_{name.upper()}",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_keep,
            help=f"{help_text} [RECPARAMS_{name.upper()}]",
        )(command)
    command = click.option(
        "--admin-key",
        envvar="RECPARAMS_ADMIN_KEY",
        help="Admin key. [RECPARAMS_ADMIN_KEY; default: that of a development server or demo "
        "that was started in this folder]",
    )(command)
    return click.option(
        "--address",
        envvar="RECPARAMS_ADDRESS",
        default=found_address,
        help="host:port of the server. [RECPARAMS_ADDRESS; default: that of a development server "
        f"or demo that was started in this folder, else {DEFAULT_ADDRESS}]",
    )(command)


def _folder() -> Path:
    """Returns the folder in which a server says where it is, or would if there were one."""
    given = os.environ.get("RECPARAMS_DATA_DIR")
    folders = (Path(given),) if given else FOLDERS
    return next((one for one in folders if (one / ADDRESS_FILE).is_file()), folders[0])


def found_address() -> str:
    """Returns the address of a server that was started in this folder, else the default one."""
    file = _folder() / ADDRESS_FILE
    return file.read_text().strip() if file.is_file() else DEFAULT_ADDRESS


def _keep(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    context.meta[f"{__name__}.{parameter.name}"] = value


def credentials() -> grpc.ChannelCredentials | None:
    """Returns the credentials that the options of the running command give; None is plain text."""
    meta = click.get_current_context().meta
    ca, cert, key = (meta[f"{__name__}.{name}"] for name in _TLS_FILES)
    if ca is None and (cert or key):
        raise click.UsageError("--cert and --key need --ca.")
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key need each other.")
    if ca is None:
        return None
    from recparams_client import tls_credentials

    return tls_credentials(ca, cert, key)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")(command)


def admin_metadata(admin_key: str | None) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of admin calls: the key of the option, else of the key file, if any.

    Ends the program, as a wrong key would, if the key cannot be sent.
    """
    file = _folder() / ADMIN_KEY_FILE
    if admin_key is None and file.is_file():
        admin_key = file.read_text().strip()
    if admin_key and not (admin_key.isascii() and admin_key.isprintable()):
        click.echo("recparams: the admin key has characters other than printable ASCII", err=True)
        raise SystemExit(Exit.REFUSED)
    return ((ADMIN_KEY_HEADER, admin_key),) if admin_key else ()


def open_channel(kind: Any, address: str) -> Any:
    """Returns a channel of grpc or grpc.aio, with TLS where the running command's options ask."""
    tls = credentials()
    if tls is None:
        return kind.insecure_channel(address, options=_CHANNEL)
    return kind.secure_channel(address, tls, options=_CHANNEL)


@contextlib.contextmanager
def channel(address: str) -> Iterator[grpc.Channel]:
    """Opens a channel; a call that fails ends the program with one line and an exit code."""
    with open_channel(grpc, address) as opened:
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
    """Returns the answer to one unary call of a service's stub; errors as `channel`."""
    with channel(address) as opened:
        call = getattr(service(opened), method)
        return call(request, metadata=admin_metadata(admin_key), timeout=timeout)


def reason_of(raised: Any) -> str:
    """Returns the machine-readable reason of an error, or an empty text."""
    info = error_details_pb2.ErrorInfo()
    for detail in _status(raised).details:
        detail.Unpack(info)
    return str(info.reason)


def fail(raised: Any, address: str) -> NoReturn:
    """Prints the message of a failed call and ends the program."""
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
