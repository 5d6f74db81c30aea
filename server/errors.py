"""Errors as callers see them: one gRPC status with google.rpc details, and never a stack trace."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NoReturn

import asyncpg
import grpc
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "recparams"
MOST_DETAIL_BYTES = 4000
LONGEST_DESCRIPTION = 500
log = structlog.get_logger()

STORE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
)
"""What asyncpg raises while the database is away, starting, stopping or full."""


@dataclass
class ServiceError(Exception):
    """Ends a call with a status, a message for people and details for programs."""

    code: grpc.StatusCode
    message: str
    details: list[Message] = field(default_factory=list)


def error(
    code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] | None = None
) -> ServiceError:
    """An error with a machine-readable reason (google.rpc.ErrorInfo)."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    return ServiceError(code, message, [info])


def not_found(what: str) -> ServiceError:
    """NOT_FOUND for a thing such as "training run 7"."""
    return error(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"there is no {what}")


def store_unavailable() -> ServiceError:
    """UNAVAILABLE with RetryInfo: nothing was stored, try again."""
    failure = error(
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "the database cannot be reached: nothing was changed, try again",
    )
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=1))
    failure.details.append(retry)
    return failure


class Violations:
    """Collects what is wrong with a request, field by field."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []

    def add(self, name: str, description: str) -> None:
        """Notes one field, by its path such as requests[3].user_id."""
        self._found.append((name, description))

    def extend(self, other: "Violations") -> None:
        """Notes what another one has."""
        self._found += other._found

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raises INVALID_ARGUMENT where anything was noted."""
        if self._found:
            raise self.error()

    def error(self) -> ServiceError:
        """INVALID_ARGUMENT with what was noted, which is at least one field."""
        bad = error_details_pb2.BadRequest()
        for name, description in self._found:
            # Clients refuse an answer whose metadata are too large.
            if bad.ByteSize() > MOST_DETAIL_BYTES:
                break
            bad.field_violations.add(field=name, description=description[:LONGEST_DESCRIPTION])
        name, description = self._found[0]
        description = description[:LONGEST_DESCRIPTION]
        more = f" (and {len(self._found) - 1} more)" if len(self._found) > 1 else ""
        message = f"{name}: {description}{more}"
        return ServiceError(grpc.StatusCode.INVALID_ARGUMENT, message, [bad])


def invalid(name: str, description: str) -> ServiceError:
    """INVALID_ARGUMENT for one field."""
    violations = Violations()
    violations.add(name, description)
    return violations.error()


def too_many_calls(per_second: float, seconds: float) -> ServiceError:
    """RESOURCE_EXHAUSTED with RetryInfo, for a caller above its rate."""
    failure = error(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "TOO_MANY_CALLS",
        f"more than {per_second:g} calls a second: try again in {seconds:.3g} s",
    )
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=seconds))
    failure.details.append(retry)
    return failure


async def abort(context: Any, failure: ServiceError, request_id: str) -> NoReturn:
    """Ends the call. The details travel as grpc-status-details-bin."""
    status = status_pb2.Status(code=code_pb2.Code.Value(failure.code.name), message=failure.message)
    for detail in (*failure.details, error_details_pb2.RequestInfo(request_id=request_id)):
        status.details.add().Pack(detail)
    trailer = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(failure.code, failure.message, trailer)
    raise AssertionError("abort always raises")


def as_service_error(failure: Exception, method: str, request_id: str) -> ServiceError:
    """The status of what a handler raised; the log has what callers are not told."""
    if isinstance(failure, ServiceError):
        return failure
    if isinstance(failure, STORE_ERRORS):
        log.warning("store unavailable", method=method, request_id=request_id, error=repr(failure))
        return store_unavailable()
    incident = secrets.token_hex(4)
    log.error(
        "internal error",
        method=method,
        request_id=request_id,
        incident=incident,
        exc_info=failure,
    )
    return error(
        grpc.StatusCode.INTERNAL,
        "INTERNAL",
        f"internal error; the server's log has it as incident {incident}",
        {"incident": incident},
    )
