"""OpenTelemetry traces, where the setting `tracing` is on: of calls, SQL and worker processes.

While it is off nothing of OpenTelemetry is imported, and nothing surrounds calls.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import grpc

MISSING = "tracing is on, but its packages are missing: pip install 'recparams[otel]'"
Part = contextlib.AbstractContextManager[object]


class TracingError(Exception):
    """Traces cannot be made; the message says why and what to do."""


class Traces(Protocol):
    """What `server.observability.opentelemetry_traces` does, or nothing."""

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]: ...

    def carrier(self) -> dict[str, str]: ...

    def span(self, name: str) -> Part: ...

    def continued(self, name: str) -> Part: ...

    def quiet(self) -> Part: ...

    def stop(self) -> None: ...


class _Off:
    """No traces."""

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        return []

    def carrier(self) -> dict[str, str]:
        return {}

    def span(self, name: str) -> Part:  # noqa: ARG002
        return contextlib.nullcontext()

    continued = span

    def quiet(self) -> Part:
        return contextlib.nullcontext()

    def stop(self) -> None:
        pass


_OFF: Traces = _Off()
_traces = _OFF


def start(service: str) -> None:
    """Begins to trace this process, as a service of this name unless OTEL_SERVICE_NAME differs.

    Raises TracingError where packages are missing.
    """
    global _traces
    try:
        telemetry = importlib.import_module("server.observability.opentelemetry_traces")
    except ImportError as failure:
        raise TracingError(f"{MISSING} ({failure})") from None
    _traces = telemetry.Traces(service)


def stop() -> None:
    """Sends what has not been sent, which may take seconds, and traces no more."""
    global _traces
    _traces.stop()
    _traces = _OFF


def interceptors() -> list[grpc.aio.ServerInterceptor]:
    """What makes a span of each call of a server."""
    return _traces.interceptors()


def carrier() -> dict[str, str]:
    """Environment variables by which a child process goes on with the trace of this call."""
    return _traces.carrier()


def span(name: str) -> Part:
    """A part of the trace."""
    return _traces.span(name)


def continued(name: str) -> Part:
    """A part of the trace that the parent process gave as `carrier`."""
    return _traces.continued(name)


def quiet() -> Part:
    """Leaves out what is asked over and over."""
    return _traces.quiet()
