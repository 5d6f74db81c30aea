"""OpenTelemetry traces of calls, SQL and worker processes, if the setting `tracing` is on.

While it is off nothing of OpenTelemetry is imported, and calls have no interceptor.
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
    """Traces that cannot be made; the message says why and what to do."""


class Traces(Protocol):
    """The traces of a process; methods are those of this module's functions."""

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
    """Begins to trace this process as a service, which OTEL_SERVICE_NAME may rename.

    Raises TracingError if packages are missing.
    """
    global _traces
    try:
        telemetry = importlib.import_module("recparams_server.observability.opentelemetry_traces")
    except ImportError as failure:
        raise TracingError(f"{MISSING} ({failure})") from None
    _traces = telemetry.Traces(service)


def stop() -> None:
    """Sends the spans that are left, which may take seconds, and ends tracing."""
    global _traces
    _traces.stop()
    _traces = _OFF


def interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Returns interceptors for a server that make a span of each call."""
    return _traces.interceptors()


def carrier() -> dict[str, str]:
    """Returns environment variables by which a child process continues this trace."""
    return _traces.carrier()


def span(name: str) -> Part:
    """Makes a span of the body of a with statement."""
    return _traces.span(name)


def continued(name: str) -> Part:
    """Makes a span of the trace that the parent process gave as `carrier`."""
    return _traces.continued(name)


def quiet() -> Part:
    """Makes no spans of calls and SQL in the body of a with statement."""
    return _traces.quiet()
