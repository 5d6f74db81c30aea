"""Errors of the server, with their google.rpc details decoded."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class Violation:
    """A field of a request that is wrong.

    Attributes:
        field: its path, such as interactions[3].decision_token.
        description: the error, for people.
    """

    field: str
    description: str


class RecParamsError(Exception):
    """A call that failed.

    Attributes:
        code: gRPC status.
        message: one line for people.
        violations: fields that are wrong, for INVALID_ARGUMENT.
        reason: machine-readable, as in "STORE_UNAVAILABLE"; may be empty.
        metadata: facts that belong to the reason.
        retry_after: seconds to wait before trying again; None if the server does not say.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        violations: tuple[Violation, ...] = (),
        reason: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.violations = violations
        self.reason = reason
        self.metadata = metadata or {}
        self.retry_after = retry_after


def _messages() -> dict[str, Any]:
    """Returns google.rpc messages by name, so that the client needs no package for these few.

    A map field travels as repeated key-value entries, and Any and Duration as plain messages.
    """
    kinds = descriptor_pb2.FieldDescriptorProto
    shapes: dict[str, list[tuple[str, Any]]] = {
        "Any": [("type_url", kinds.TYPE_STRING), ("value", kinds.TYPE_BYTES)],
        "Status": [
            ("code", kinds.TYPE_INT32),
            ("message", kinds.TYPE_STRING),
            ("details", "Any"),
        ],
        "Violation": [("field", kinds.TYPE_STRING), ("description", kinds.TYPE_STRING)],
        "BadRequest": [("field_violations", "Violation")],
        "Entry": [("key", kinds.TYPE_STRING), ("value", kinds.TYPE_STRING)],
        "ErrorInfo": [
            ("reason", kinds.TYPE_STRING),
            ("domain", kinds.TYPE_STRING),
            ("metadata", "Entry"),
        ],
        "Duration": [("seconds", kinds.TYPE_INT64), ("nanos", kinds.TYPE_INT32)],
        "RetryInfo": [("retry_delay", "Duration")],
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="recparams_client/details.proto", package="recparams_client", syntax="proto3"
    )
    for name, fields in shapes.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind) in enumerate(fields, 1):
            field = message.field.add(name=field_name, number=number)
            if isinstance(kind, str):
                field.type = kinds.TYPE_MESSAGE
                field.type_name = f".recparams_client.{kind}"
                field.label = kinds.LABEL_REPEATED
            else:
                field.type = kind
                field.label = kinds.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"recparams_client.{name}")
        )
        for name in shapes
    }


MESSAGES = _messages()


def from_rpc_error(raised: Any) -> RecParamsError:
    """Returns the error of a failed sync or async call."""
    details = {}
    for key, value in raised.trailing_metadata() or ():
        # What a proxy garbled must not hide the error itself.
        with suppress(DecodeError):
            if key == DETAILS_KEY:
                for detail in MESSAGES["Status"].FromString(value).details:
                    name = detail.type_url.rpartition("/google.rpc.")[2]
                    if name in MESSAGES:
                        details[name] = MESSAGES[name].FromString(detail.value)
    bad, info, retry = (details.get(name) for name in ("BadRequest", "ErrorInfo", "RetryInfo"))
    delays = retry.retry_delay if retry else ()
    return RecParamsError(
        raised.code(),
        raised.details() or "",
        tuple(Violation(v.field, v.description) for v in bad.field_violations) if bad else (),
        info.reason if info else "",
        {entry.key: entry.value for entry in info.metadata} if info else {},
        sum(d.seconds + d.nanos / 1e9 for d in delays) if delays else None,
    )
