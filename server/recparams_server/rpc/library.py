"""The services that come with gRPC, health and reflection, with a limit of their requests."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

LARGEST_REQUEST = 64 * 1024


def add_library(server: grpc.aio.Server, servicer: health.aio.HealthServicer, names: Any) -> None:
    """Registers health and reflection.

    Args:
        server: the server.
        servicer: tells of health.
        names: full names of the services that reflection tells of, besides these two.
    """
    registrar = _Registrar(server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, registrar)
    reflected = reflection.aio.ReflectionServicer(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    )
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, registrar)


class _Registrar:
    """Passes handlers on to a server, with decoders that refuse large requests."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        """Does nothing: these are the handlers of `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Registers the handlers of a service, by method name."""
        limited = {
            name: handler._replace(
                request_deserializer=_limited(service, handler.request_deserializer)
            )
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, limited)]
        )


def _limited(kind: str, decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def limited(message: bytes) -> Any:
        if len(message) > LARGEST_REQUEST:
            # In the words of protobuf, which gRPC passes on to callers.
            raise DecodeError(f"Error parsing message with type '{kind}': too large")
        return decode(message)

    return limited
