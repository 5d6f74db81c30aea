"""The set-up of channels: balancing over replicas, retries, keepalive."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc

from recparams.v1 import recommendation_pb2_grpc

API_KEY_HEADER = "x-api-key"
ADMIN_KEY_HEADER = "x-admin-key"
DECISION_TIMEOUT = 0.05
WRITE_TIMEOUT = 5.0
READY_TIMEOUT = 10.0
SERVICE = "recparams.v1.RecommendationService"
_DECISIONS = ("GetRecommendationParams", "BatchGetRecommendationParams")
_WRITES = ("RecordInteractions", "PutPersonalityProfiles")
_RESOLVED = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
"""Schemes that gRPC itself resolves."""


def _method_config(methods: Sequence[str], initial: str, largest: str) -> dict[str, object]:
    return {
        "name": [{"service": SERVICE, "method": method} for method in methods],
        "retryPolicy": {
            "maxAttempts": 5,
            "initialBackoff": initial,
            "maxBackoff": largest,
            "backoffMultiplier": 2,
            # A server that stops cancels calls that it had not begun.
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        },
    }


# Every call is idempotent. gRPC keeps retries within the call's deadline.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # A replica that drains says so before it refuses calls.
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [
        _method_config(_DECISIONS, "0.002s", "0.02s"),
        _method_config(_WRITES, "0.1s", "1s"),
    ],
}

OPTIONS = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # By default a replica that was away for long is not tried again for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

LONG_LIVED = (
    *OPTIONS[1:],
    # A stream stays where it is: any replica that is up will do.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    ("grpc.max_receive_message_length", 1 << 28),
)
"""Options of the channel of a stream."""


Options = Sequence[tuple[str, Any]]


def tls_credentials(
    ca: str | Path, cert: str | Path | None = None, key: str | Path | None = None
) -> grpc.ChannelCredentials:
    """Returns credentials for TLS from PEM files.

    Args:
        ca: certificates that the server's must lead to.
        cert, key: a certificate of the client's own and its key, for servers that ask for one.

    Raises:
        OSError: a file cannot be read.
    """
    return grpc.ssl_channel_credentials(
        Path(ca).read_bytes(),
        None if key is None else Path(key).read_bytes(),
        None if cert is None else Path(cert).read_bytes(),
    )


def from_environment() -> dict[str, Any]:
    """Returns address, credentials and admin key by the variables of the command line.

    RECPARAMS_ADDRESS (127.0.0.1:50051 by default), RECPARAMS_ADMIN_KEY, and for TLS RECPARAMS_CA,
    RECPARAMS_CERT and RECPARAMS_KEY.

    Raises:
        OSError: a file cannot be read.
    """
    files = [os.environ.get(f"RECPARAMS_{name}") for name in ("CA", "CERT", "KEY")]
    return {
        "address": os.environ.get("RECPARAMS_ADDRESS", "127.0.0.1:50051"),
        "credentials": tls_credentials(files[0], *files[1:]) if files[0] else None,
        "admin_key": os.environ.get("RECPARAMS_ADMIN_KEY"),
    }


def connect(
    kind: Any,
    address: str | Sequence[str],
    credentials: grpc.ChannelCredentials | None,
    defaults: Options = OPTIONS,
    options: Options = (),
    interceptors: Sequence[Any] = (),
) -> Any:
    """Returns a channel.

    Args:
        kind: `grpc` or `grpc.aio`.
        address: as for `target`.
        credentials: for TLS; None is plain text.
        defaults: options of the channel.
        options: more of them, which go before these.
        interceptors: of the channel, the first one outermost.

    Raises:
        ValueError: there is no address, or it is a URL.
    """
    where = target(address)
    more: dict[str, Any] = {"options": tuple({**dict(defaults), **dict(options)}.items())}
    if kind is not grpc:
        more["interceptors"] = interceptors
    if credentials is None:
        channel = kind.insecure_channel(where, **more)
    else:
        channel = kind.secure_channel(where, credentials, **more)
    if kind is grpc and interceptors:
        return grpc.intercept_channel(channel, *interceptors)
    return channel


def key_metadata(api_key: str | None) -> tuple[tuple[str, str], ...] | None:
    """Returns the metadata of calls with an API key."""
    return None if api_key is None else ((API_KEY_HEADER, api_key),)


def target(address: str | Sequence[str]) -> str:
    """Returns the gRPC target of host:port, of a gRPC target itself, or of several ip:port.

    Raises:
        ValueError: there is no address, or it is a URL.
    """
    if not address:
        raise ValueError("an address is needed, as in '127.0.0.1:50051'")
    addresses = [address] if isinstance(address, str) else address
    for one in addresses:
        scheme = re.match(r"([a-z][a-z0-9+.-]*)://", one, re.IGNORECASE)
        if scheme and scheme[1].lower() not in _RESOLVED:
            raise ValueError(
                f"{one!r} is a URL: give host:port alone, and credentials=tls_credentials(...) "
                "where the server has TLS"
            )
    return addresses[0] if len(addresses) == 1 else "ipv4:" + ",".join(addresses)


def decision_stub(channel: Any) -> Any:
    """Returns the stub of decisions and records, and of a call that asks if anybody is there.

    `Check` takes and returns bytes. It is not retried, so it fails with what is wrong right now.
    """
    stub: Any = recommendation_pb2_grpc.RecommendationServiceStub(channel)
    stub.Check = channel.unary_unary("/grpc.health.v1.Health/Check")
    return stub
