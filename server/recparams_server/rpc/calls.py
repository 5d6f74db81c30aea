"""Handlers around those of the services: authorization, limits, errors and counts of each call."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from structlog.contextvars import bind_contextvars, bound_contextvars

from recparams_server.contract.errors import ServiceError, error, exhausted
from recparams_server.observability.rpc_metrics import MethodStats, RpcStats
from recparams_server.rpc.authorization import Admission
from recparams_server.rpc.connections import close_connection
from recparams_server.rpc.decoding import decoded_in_turns
from recparams_server.rpc.failures import abort, as_service_error
from recparams_server.rpc.methods import Kind, method_policy
from recparams_server.rpc.rate_limit import RateLimit
from recparams_server.rpc.streams import SlowReaderError, Stream, Streams
from recparams_server.settings import Settings

REQUEST_ID_HEADER = "x-request-id"
LONGEST_REQUEST_ID = 128
LONGEST_GOODBYE = 5.0
"""Seconds for sending a status."""

Handler = Callable[[Any, Any], Awaitable[Any]]
Decode = Callable[[Any], Awaitable[Any]]


def request_id(context: Any) -> str:
    """Returns the id that a caller gave its request, or a new one of 16 hexadecimal digits."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_HEADER, "")
    if isinstance(given, str) and 0 < len(given) <= LONGEST_REQUEST_ID and given.isprintable():
        return given
    return secrets.token_hex(8)


def peer(context: Any) -> str:
    """Returns the address of a caller without its port, such as ipv4:10.0.0.7."""
    return str(context.peer()).rpartition(":")[0]


@dataclass(frozen=True)
class Calls:
    """The policies of all calls of a server.

    Handlers are plain methods that raise ServiceError. Those of `Kind.QUICK` methods get and give
    encoded messages, at once where they wait for nothing, which saves a coroutine.

    Args:
        admission: gives the check of each method.
        rate: the limit of each caller's calls a second, or None.
        timeout: seconds that a call may take.
        long_timeout: the same for methods of `Kind.LONG`.
        streams: the limits of endless streams.
        stats: the counts that calls are added to.
    """

    admission: Admission
    rate: RateLimit | None
    timeout: float
    long_timeout: float
    streams: Streams
    stats: RpcStats

    @classmethod
    def from_settings(cls, settings: Settings, admission: Admission) -> "Calls":
        """Returns the policies that the settings ask for."""
        most = settings.max_calls_per_second
        return cls(
            admission,
            RateLimit(most) if most else None,
            settings.call_timeout_seconds,
            settings.long_call_timeout_seconds,
            Streams(
                settings.max_streams,
                settings.max_streams_per_caller,
                settings.watch_stall_seconds,
            ),
            RpcStats(),
        )

    def add(self, server: grpc.aio.Server, service: Any, descriptor: ServiceDescriptor) -> None:
        """Registers the handlers of a service, which are its methods of the RPCs' names."""
        handlers = {method.name: self._around(service, method) for method in descriptor.methods}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(descriptor.full_name, handlers)]
        )

    def _around(self, service: Any, method: MethodDescriptor) -> "grpc.RpcMethodHandler[Any, Any]":
        handler = getattr(service, method.name)
        kind = method_policy(method).kind
        admit = self._admit(method)
        stats = self.stats.of(method.name)
        decode = _decoder(method)
        serializer = GetMessageClass(method.output_type).SerializeToString
        if kind is Kind.ENDLESS:
            stream = self.streams.around(_named(handler), self._caller_of(method))
            return grpc.unary_stream_rpc_method_handler(_streaming(stream, admit, stats, decode))
        if method.server_streaming:
            stream = self._limited_stream(method.name, kind, handler)
            return grpc.unary_stream_rpc_method_handler(
                _streaming(stream, admit, stats, decode), response_serializer=serializer
            )
        if kind is Kind.QUICK:
            return grpc.unary_unary_rpc_method_handler(_unary(handler, admit, stats, None))
        make = (
            grpc.stream_unary_rpc_method_handler
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        around = _unary(self._limited(method.name, kind, handler), admit, stats, decode)
        return make(around, response_serializer=serializer)

    def _caller_of(self, method: MethodDescriptor) -> Callable[[Any], str]:
        """Returns what names a caller: its name, or its address where everybody may call."""
        check = self.admission(method)
        return lambda context: (check and check.check(context)) or peer(context)

    def _admit(self, method: MethodDescriptor) -> Callable[[Any], object] | None:
        rate, caller_of = self.rate, self._caller_of(method)
        if rate is None:
            check = self.admission(method)
            return None if check is None else check.check

        def admit(context: Any) -> None:
            try:
                caller = caller_of(context)
            except ServiceError:
                # Of whoever shows a wrong key the address is all that is known. Counted apart: it
                # takes nothing from others at that address.
                _take(rate, f"refused at {peer(context)}")
                raise
            _take(rate, caller)

        return admit

    def _limited(self, name: str, kind: Kind, handler: Handler) -> Handler:
        async def limited(request: Any, context: Any) -> Any:
            async with self._limits(name, kind, context):
                return await handler(request, context)

        return limited

    def _limited_stream(
        self, name: str, kind: Kind, handler: Callable[[Any, Any], AsyncIterator[Any]]
    ) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def limited(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._limits(name, kind, context):
                async for response in handler(request, context):
                    yield response

        return limited

    @asynccontextmanager
    async def _limits(self, name: str, kind: Kind, context: Any) -> AsyncIterator[None]:
        """Binds the request's id to log lines, and ends the call when it takes too long.

        Raises DEADLINE_EXCEEDED.
        """
        seconds = self.long_timeout if kind is Kind.LONG else self.timeout
        limit = asyncio.timeout(seconds)
        with bound_contextvars(request_id=request_id(context)):
            try:
                async with limit:
                    yield
            except TimeoutError:
                if not limit.expired():
                    raise
                raise error(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    "CALL_TIMEOUT",
                    f"{name} took longer than the {seconds:g} s that this server gives it",
                ) from None


def _named(handler: Stream) -> Stream:
    """Binds the request's id to the log lines of a stream, whose task has a context of its own."""

    def named(request: Any, context: Any) -> AsyncIterator[Any]:
        bind_contextvars(request_id=request_id(context))
        return handler(request, context)

    return named


def _unary(
    handler: Callable[[Any, Any], Awaitable[Any] | bytes],
    admit: Callable[[Any], object] | None,
    stats: MethodStats,
    decode: Decode | None,
) -> Handler:
    async def call(request: Any, context: Any) -> Any:
        started = time.perf_counter()
        try:
            if admit is not None:
                admit(context)
            if decode is not None:
                request = await decode(request)
            answer = handler(request, context)
            if not isinstance(answer, bytes):
                answer = await answer
        except BaseException as failure:
            await _end(failure, context, stats, time.perf_counter() - started)
        stats.count("OK", time.perf_counter() - started)
        return answer

    return call


def _streaming(
    handler: Callable[[Any, Any], AsyncIterator[Any]],
    admit: Callable[[Any], object] | None,
    stats: MethodStats,
    decode: Decode,
) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        started = time.perf_counter()
        try:
            if admit is not None:
                admit(context)
            async for response in handler(await decode(request), context):
                yield response
        except BaseException as failure:
            await _end(failure, context, stats, time.perf_counter() - started)
        stats.count("OK", time.perf_counter() - started)

    return call


def _take(rate: RateLimit, caller: str) -> None:
    """Counts a call of a caller. Raises RESOURCE_EXHAUSTED above its rate."""
    seconds = rate.take(caller)
    if seconds:
        raise exhausted(
            "TOO_MANY_CALLS",
            f"more than {rate.per_second:g} calls a second: try again in {seconds:.3g} s",
            seconds,
        )


async def _end(
    failure: BaseException, context: Any, stats: MethodStats, seconds: float
) -> NoReturn:
    """Counts a call that failed, and ends it with a status; what is no Exception goes on."""
    if not isinstance(failure, Exception):
        left = context.time_remaining()
        late = left is not None and left <= 0
        stats.count("DEADLINE_EXCEEDED" if late else "CANCELLED", seconds)
        try:
            raise failure
        finally:
            # Its traceback has this frame: with it they would be a cycle, and whole calls garbage.
            del failure
    name = request_id(context)
    status = as_service_error(failure, stats.method, name)
    stats.count(status.code.name, seconds)
    try:
        async with asyncio.timeout(LONGEST_GOODBYE):
            await abort(context, status, name)
    except grpc.aio.AbortError:
        raise
    except Exception as refused:
        # Who does not read does not take the status either, and gRPC would keep what it did not
        # take for as long as the connection lasts. With it ends this call.
        if isinstance(refused, TimeoutError) or isinstance(status, SlowReaderError):
            await asyncio.to_thread(close_connection, context.peer())
            await asyncio.sleep(LONGEST_GOODBYE)
        raise
    raise AssertionError("abort always raises")


def _decoder(method: MethodDescriptor) -> Decode:
    kind, policy = GetMessageClass(method.input_type), method_policy(method)

    async def one(message: bytes) -> Message:
        return await decoded_in_turns(kind, message, policy)

    async def pieces(messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for message in messages:
            yield await one(message)

    async def stream(messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        return pieces(messages)

    return stream if method.client_streaming else one
