"""Structured logs on standard error: one JSON object a line, or text for people."""

import logging
import sys

import asyncpg
import structlog


def configure(level: str, form: str) -> None:
    """Sets up structlog and routes the standard library's loggers through it.

    Args:
        level: least severity: debug, info, warning or error.
        form: "json", "console", or "auto": console on a terminal, json elsewhere.
    """
    shared: list[structlog.typing.Processor] = [
        _leave_out_values,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if form == "console" or (form == "auto" and sys.stderr.isatty())
        else structlog.processors.JSONRenderer()
    )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared)
    )
    handler.addFilter(_quotes_no_metadata)
    logging.basicConfig(level=max(threshold, logging.WARNING), handlers=[handler], force=True)


def _quotes_no_metadata(record: logging.LogRecord) -> bool:
    """Returns False for gRPC's lines about metadata that are no UTF-8: they quote it, keys too."""
    return not record.getMessage().startswith("Invalid encoding on ")


def _leave_out_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Removes values of rows, which may be personal, from exceptions before they are written."""
    found = event.get("exc_info")
    if isinstance(found, tuple):
        found = found[1]
    if found is True:
        found = sys.exc_info()[1]
    if isinstance(found, BaseException):
        _forget_values(found, set())
    return event


def _forget_values(failure: BaseException, seen: set[int]) -> None:
    """Removes the rows and values that Postgres quotes from an exception and its causes."""
    if id(failure) in seen:
        return
    seen.add(id(failure))
    if isinstance(failure, asyncpg.PostgresError):
        failure.detail = None
        if isinstance(failure, asyncpg.DataError):
            failure.args = ("a value was refused, which the log leaves out",)
    behind = [failure.__cause__, failure.__context__]
    if isinstance(failure, BaseExceptionGroup):
        behind += failure.exceptions
    for other in behind:
        if other is not None:
            _forget_values(other, seen)
