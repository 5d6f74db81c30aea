"""The trace context of calls, where the caller uses OpenTelemetry."""

import sys

Metadata = tuple[tuple[str, str], ...] | None


def traced(metadata: Metadata) -> Metadata:
    """Returns the metadata of a call with the current trace context, if there is one.

    It is left to OpenTelemetry's propagators, and only where the program has imported OpenTelemetry
    by itself.
    """
    if "opentelemetry.trace" not in sys.modules:
        return metadata
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    if not carrier:
        return metadata
    return (*(metadata or ()), *((name.lower(), value) for name, value in carrier.items()))
