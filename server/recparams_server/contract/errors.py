"""Errors as callers see them: one gRPC status with google.rpc details, and never a stack trace."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2

DOMAIN = "recparams"
MOST_DETAIL_BYTES = 4000
MOST_VIOLATIONS = 100
LONGEST_DESCRIPTION = 500


@dataclass
class ServiceError(Exception):
    """An error that ends a call.

    Attributes:
        code: gRPC status.
        message: one line for people.
        details: google.rpc messages for programs.
    """

    code: grpc.StatusCode
    message: str
    details: list[Message] = field(default_factory=list)


def error(
    code: grpc.StatusCode, reason: str, message: str, metadata: Mapping[str, str] | None = None
) -> ServiceError:
    """Returns an error with a machine-readable reason (google.rpc.ErrorInfo).

    Args:
        code: gRPC status.
        reason: as in "STORE_UNAVAILABLE".
        message: one line for people.
        metadata: facts that belong to the reason.
    """
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    return ServiceError(code, message, [info])


def not_found(what: str) -> ServiceError:
    """Returns NOT_FOUND for a thing such as "training run 7"."""
    return error(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"there is no {what}")


def store_unavailable() -> ServiceError:
    """Returns UNAVAILABLE with RetryInfo: nothing was stored, try again."""
    failure = error(
        grpc.StatusCode.UNAVAILABLE,
        "STORE_UNAVAILABLE",
        "the database cannot be used at the moment: nothing was changed, try again",
    )
    return _with_retry(failure, 1.0)


def exhausted(reason: str, message: str, seconds: float) -> ServiceError:
    """Returns RESOURCE_EXHAUSTED with RetryInfo.

    Args:
        reason: as in "TOO_MANY_CALLS".
        message: one line for people.
        seconds: until it is worth trying again.
    """
    return _with_retry(error(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message), seconds)


def _with_retry(failure: ServiceError, seconds: float) -> ServiceError:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=seconds))
    failure.details.append(retry)
    return failure


class Violations:
    """The fields of a request that are wrong; as many as its length says.

    The first `MOST_VIOLATIONS` are kept, the others counted.
    """

    def __init__(self) -> None:
        self._found: list[tuple[str, str]] = []
        self._count = 0

    def add(self, name: str, description: str) -> None:
        """Adds a field, by its path such as requests[3].user_id."""
        self._count += 1
        if len(self._found) < MOST_VIOLATIONS:
            self._found.append((name, description))

    def __len__(self) -> int:
        return self._count

    def raise_any(self) -> None:
        """Raises INVALID_ARGUMENT if there is any field."""
        if self._found:
            raise self.error()

    def error(self) -> ServiceError:
        """Returns INVALID_ARGUMENT with the fields, of which there must be one."""
        bad = error_details_pb2.BadRequest()
        for name, description in self._found:
            # Clients refuse an answer whose metadata are too large.
            if bad.ByteSize() > MOST_DETAIL_BYTES:
                break
            bad.field_violations.add(field=name, description=description[:LONGEST_DESCRIPTION])
        name, description = self._found[0]
        description = description[:LONGEST_DESCRIPTION]
        more = f" (and {self._count - 1} more)" if self._count > 1 else ""
        message = f"{name}: {description}{more}"
        return ServiceError(grpc.StatusCode.INVALID_ARGUMENT, message, [bad])


def invalid(name: str, description: str) -> ServiceError:
    """Returns INVALID_ARGUMENT for one field."""
    violations = Violations()
    violations.add(name, description)
    return violations.error()
