"""Traces by OpenTelemetry; needs the extra `otel`, and only `tracing` imports it.

The exporter, the sampler and the propagators follow the standard OTEL_* variables.
"""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import grpc
import structlog
from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Status

STOP_SECONDS = 2.0


class Traces:
    """The traces of this process, as the protocol in `observability.tracing` says."""

    def __init__(self, service: str) -> None:
        ours = Resource({"service.name": service, "service.version": version("recparams")})
        resource = Resource.create().merge(ours).merge(OTELResourceDetector().detect())
        self._exporter = _Discreet(OTLPSpanExporter())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("recparams")
        self._processors = structlog.get_config()["processors"]
        structlog.configure(processors=[_add_trace_id, *self._processors])
        AsyncPGInstrumentor().instrument(  # type: ignore[no-untyped-call]
            tracer_provider=self._provider
        )

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """Returns interceptors that make a span of each call, but for those of health probes."""
        return [
            aio_server_interceptor(  # type: ignore[no-untyped-call]
                tracer_provider=self._provider, filter_=filters.negate(filters.health_check())
            )
        ]

    def carrier(self) -> dict[str, str]:
        """Returns TRACEPARENT and the other fields of the propagators, as environment variables."""
        found: dict[str, str] = {}
        propagate.inject(found)
        return {name.upper(): value for name, value in found.items()}

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Makes a span of the body of a with statement."""
        with self._tracer.start_as_current_span(name):
            yield

    @contextlib.contextmanager
    def continued(self, name: str) -> Iterator[None]:
        """Makes a span of the trace in the environment variables that `carrier` gave."""
        given = {
            field: os.environ[field.upper()]
            for field in propagate.get_global_textmap().fields
            if field.upper() in os.environ
        }
        token = context.attach(propagate.extract(given))
        try:
            with self.span(name):
                yield
        finally:
            context.detach(token)

    def quiet(self) -> contextlib.AbstractContextManager[object]:
        """Makes no spans of calls and SQL in the body of a with statement."""
        return suppress_instrumentation()

    def stop(self) -> None:
        """Sends the spans that are left, and gives up after `STOP_SECONDS`."""
        AsyncPGInstrumentor().uninstrument()  # type: ignore[no-untyped-call]
        structlog.configure(processors=self._processors)
        giving_up = threading.Timer(STOP_SECONDS, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class _Discreet(SpanExporter):
    """An exporter of spans without the texts of errors: Postgres quotes values of rows in them.

    Spans of SQL outside calls and jobs, such as looking for a new model, are left out.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return self._exporter.export(
            [
                _discreet(span)
                for span in spans
                if span.parent is not None or span.kind is not SpanKind.CLIENT
            ]
        )

    def shutdown(self) -> None:
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _discreet(span: ReadableSpan) -> ReadableSpan:
    return ReadableSpan(
        name=span.name,
        context=span.context,
        parent=span.parent,
        resource=span.resource,
        attributes=span.attributes,
        links=span.links,
        kind=span.kind,
        status=Status(span.status.status_code),
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )


def _add_trace_id(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Adds the id of the trace to a log line."""
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        event["trace_id"] = trace.format_trace_id(current.trace_id)
    return event
