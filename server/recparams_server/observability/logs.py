"""Structured logs on standard error: one JSON object a line, or text for people."""

import logging
import sys
from collections.abc import Iterator
from types import TracebackType

import asyncpg
import structlog


def configure(level: str, form: str) -> None:
    """Sets up structlog, for the standard library's loggers and uncaught exceptions as well.

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
        # Its own tracebacks, where rich is installed, show local variables.
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
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
    sys.excepthook = _log_uncaught


def _quotes_no_metadata(record: logging.LogRecord) -> bool:
    """Returns False for gRPC's lines about metadata that are no UTF-8: they quote it, keys too."""
    return not record.getMessage().startswith("Invalid encoding on ")


_TELLING = (
    "08",
    "0A",
    "23",
    "25",
    "26",
    "28",
    "3D",
    "3F",
    "40",
    "42",
    "53",
    "54",
    "55",
    "57",
    "58",
)
"""Classes of SQLSTATE whose messages name parts of the schema and of the server, not values."""
_LANGUAGES = ("pl_", "plpy", "plperl", "pltcl")
"""How sources of Postgres begin whose errors say what somebody's trigger wants them to say."""
_LEFT_OUT = "its message is left out, as it may quote a value"


def describe(failure: BaseException) -> str:
    """Returns the type, the SQLSTATE and the message of an exception and of what caused it.

    DETAIL, HINT and CONTEXT of Postgres are left out, and so are messages that may quote values:
    they can be personal.
    """
    text = type(failure).__name__
    if isinstance(failure, asyncpg.PostgresError):
        text += f" {failure.sqlstate}: {_message(failure)}"
    elif isinstance(failure, asyncpg.InterfaceError):
        text += f": {failure.args[0]}"
    elif str(failure):
        text += f": {failure}"
    cause = failure.__cause__
    return text if cause is None or _quotes(failure) else f"{text}, because of {describe(cause)}"


def _message(failure: asyncpg.PostgresError) -> str:
    return _LEFT_OUT if _quotes(failure) else str(failure.args[0])


def _quotes(failure: BaseException) -> bool:
    """Returns True if the message of an exception may have a value of a row or of a caller."""
    if not isinstance(failure, asyncpg.PostgresError):
        return False
    source = failure.server_source_filename or ""
    return source.startswith(_LANGUAGES) or not (failure.sqlstate or "").startswith(_TELLING)


def _leave_out_values(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Removes values of rows, which may be personal, from exceptions before they are written."""
    found = event.get("exc_info")
    if isinstance(found, tuple):
        found = found[1]
    if found is True:
        found = sys.exc_info()[1]
    for key, value in event.items():
        if key != "exc_info" and isinstance(value, BaseException):
            event[key] = describe(value)
    if isinstance(found, BaseException):
        # asyncio quotes in its message what nobody has awaited.
        for quoted in _forget_values(found, set()):
            for form in (quoted, repr(quoted)[1:-1]):
                event["event"] = str(event["event"]).replace(form, _LEFT_OUT)
    return event


def _forget_values(failure: BaseException, seen: set[int]) -> Iterator[str]:
    """Removes what Postgres quotes from an exception and its causes; yields the messages."""
    if id(failure) in seen:
        return
    seen.add(id(failure))
    if isinstance(failure, asyncpg.PostgresError | asyncpg.InterfaceError):
        failure.detail = failure.hint = None
    if _quotes(failure):
        if failure.args[0]:
            yield str(failure.args[0])
        failure.args = (_LEFT_OUT,)
        # Where asyncpg cannot encode a value, that is quoted behind it as well.
        failure.__cause__ = failure.__context__ = None
    behind = [failure.__cause__, failure.__context__]
    if isinstance(failure, BaseExceptionGroup):
        behind += failure.exceptions
    for other in behind:
        if other is not None:
            yield from _forget_values(other, seen)


def _log_uncaught(
    kind: type[BaseException], failure: BaseException, trace: TracebackType | None
) -> None:
    """Logs what ends the process, which Python would print as it is."""
    if isinstance(failure, KeyboardInterrupt):
        sys.__excepthook__(kind, failure, trace)
    else:
        structlog.get_logger().critical("uncaught exception", exc_info=failure)
