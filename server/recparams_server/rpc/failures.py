"""The end of a call that failed: a status with details for the caller, the rest for the log."""

import secrets
from typing import Any, NoReturn

import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2

from recparams_server.contract.errors import ServiceError, error, store_unavailable
from recparams_server.store.errors import STORE_ERRORS

log = structlog.get_logger()


async def abort(context: Any, failure: ServiceError, request_id: str) -> NoReturn:
    """Ends the call. The details travel as grpc-status-details-bin."""
    status = status_pb2.Status(code=code_pb2.Code.Value(failure.code.name), message=failure.message)
    for detail in (*failure.details, error_details_pb2.RequestInfo(request_id=request_id)):
        status.details.add().Pack(detail)
    trailer = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(failure.code, failure.message, trailer)
    raise AssertionError("abort always raises")


def as_service_error(failure: Exception, method: str, request_id: str) -> ServiceError:
    """Returns the error to end a call with, and logs what callers are not told.

    Args:
        failure: raised by a handler.
        method: bare name of the RPC.
        request_id: names the request in the log.
    """
    if isinstance(failure, ServiceError):
        return failure
    if isinstance(failure, STORE_ERRORS):
        log.warning("store unavailable", method=method, request_id=request_id, error=failure)
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
