"""The asyncio client, with the methods of the blocking one."""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio

from recparams_client import conversion, fallback
from recparams_client.account import ABSENT, READY_PAUSE, WHY_SECONDS, Account, ClientStats
from recparams_client.channel import (
    DECISION_TIMEOUT,
    OPTIONS,
    READY_TIMEOUT,
    WRITE_TIMEOUT,
    Options,
    connect,
    decision_stub,
    key_metadata,
    target,
)
from recparams_client.closing import AsyncClosing
from recparams_client.loops import LoopConnection
from recparams_client.tracing import traced
from recparams_client.types import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    Recommendation,
    RecordResult,
)

_OVERDUE_SECONDS = 1.0
"""Seconds after its deadline at which a call is ended: gRPC lost one once (1.83)."""


class AsyncRecParamsClient(AsyncClosing):
    """A client that asks for decisions and reports reactions, within one event loop.

    It connects at its first call, so a module may make it where no loop runs yet. Other loops than
    that of its first call are told by RuntimeError, until that one is closed.

    Args:
        address: host:port, any gRPC target (as in "dns:///recparams:50051"), or a sequence of
            ip:port; calls go round all of them.
        decision_timeout: seconds until the rules answer instead of the server.
        write_timeout: seconds for recording, retries included.
        credentials: for TLS, as from `tls_credentials`; None is plain text.
        api_key: the caller's secret, where the server asks who calls; send it over TLS only.
        options: of gRPC's channel, which go before the library's own, as in
            ``[("grpc.http_proxy", "http://proxy:3128")]``.
        interceptors: of gRPC's channel (grpc.aio.UnaryUnaryClientInterceptor), the first outermost.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        decision_timeout: float = DECISION_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        options: Options = (),
        interceptors: Sequence[Any] = (),
    ) -> None:
        target(address)
        self._connection = LoopConnection(
            lambda: connect(grpc.aio, address, credentials, OPTIONS, options, interceptors),
            decision_stub,
        )
        self._account = Account(address)
        self._probing: asyncio.Task[None] | None = None
        self._decision_timeout = decision_timeout
        self._write_timeout = write_timeout
        self._metadata = key_metadata(api_key)

    @property
    def stats(self) -> ClientStats:
        """The numbers of calls so far, and of decisions that this library's rules made."""
        return self._account.stats

    async def wait_for_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Returns once a server answers, so that the first decision need not connect.

        Args:
            timeout: seconds.

        Raises:
            RecParamsError: none did in time; the message has what gRPC says is wrong.
        """
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            try:
                left = max(left, 0.0)
                await _ended(self._connection.stub.Check(b"", timeout=left), left)
            except grpc.aio.AioRpcError as raised:
                if raised.code() not in ABSENT:
                    return
                if left <= 0.0 or raised.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise self._account.not_ready(timeout, raised) from None
                self._account.detail(raised)
            else:
                return
            await asyncio.sleep(min(READY_PAUSE, left))

    async def get_recommendation_params(
        self, request: DecisionRequest, *, timeout: float | None = None
    ) -> Recommendation:
        """Returns a decision for one person, and never waits longer than the timeout.

        When the server is late or away the hand-written rules answer, and `is_fallback` is True.

        Args:
            request: the person and the context.
            timeout: seconds; None is `decision_timeout`.

        Raises:
            ValueError: an unknown name, or no time.
            RecParamsError: the server refused the request.
        """
        message = conversion.request_message(request)
        try:
            seconds = self._decision_timeout if timeout is None else timeout
            call = self._connection.stub.GetRecommendationParams(
                message, timeout=seconds, metadata=traced(self._metadata)
            )
            response = await _ended(call, seconds)
        except grpc.RpcError as raised:
            return self._rules([message], raised)[0]
        self._account.answered("decisions")
        return conversion.recommendation(response)

    async def batch_get_recommendation_params(
        self, requests: Iterable[DecisionRequest], *, timeout: float | None = None
    ) -> list[Recommendation]:
        """Returns decisions for up to 256 people, in order. Otherwise as the single call."""
        message = conversion.batch_message(requests)
        try:
            seconds = self._decision_timeout if timeout is None else timeout
            call = self._connection.stub.BatchGetRecommendationParams(
                message, timeout=seconds, metadata=traced(self._metadata)
            )
            response = await _ended(call, seconds)
        except grpc.RpcError as raised:
            return self._rules(message.requests, raised)
        self._account.answered("decisions", len(response.responses))
        return [conversion.recommendation(one) for one in response.responses]

    async def record_interactions(
        self, interactions: Iterable[Interaction], *, timeout: float | None = None
    ) -> RecordResult:
        """Stores up to 1000 interactions, all or none, and returns when they are in the database.

        Repeating a call with the same interactions is safe.

        Args:
            interactions: each with the token of its decision.
            timeout: seconds, retries included; None is `write_timeout`.

        Raises:
            TypeError: a field has a value of a wrong type.
            ValueError: an unknown reaction, no time zone, or the token of a fallback.
            RecParamsError: refused, or not stored within the timeout.
        """
        message = conversion.record_message(interactions)
        response = await self._write(self._connection.stub.RecordInteractions, message, timeout)
        return conversion.record_result(response)

    async def put_personality_profiles(
        self, profiles: Mapping[str, PersonalityProfile], *, timeout: float | None = None
    ) -> int:
        """Stores up to 1000 profiles by user id, all or none, and returns their number.

        Raises:
            RecParamsError: refused, or not stored within the timeout.
        """
        message = conversion.profiles_message(profiles)
        response = await self._write(self._connection.stub.PutPersonalityProfiles, message, timeout)
        return int(response.stored)

    def _rules(self, requests: Sequence[Any], raised: Any) -> list[Recommendation]:
        """Returns the rules' answers to a call without one, and warns of it now and then."""
        reason, detail = fallback.reason_or_raise(raised), self._account.detail(raised)
        if self._account.fell_back(reason, len(requests)):
            if raised.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                # It warns when the reason is known, which no decision waits for.
                self._probing = asyncio.create_task(self._warn_late())
            else:
                self._account.warn(detail)
        return [fallback.recommend(request, reason, detail) for request in requests]

    async def _warn_late(self) -> None:
        self._account.warn_late(await self._probe())

    async def _probe(self) -> Any:
        """Returns the error of a call that finds out if a server is there; None if one is."""
        try:
            await _ended(self._connection.stub.Check(b"", timeout=WHY_SECONDS), WHY_SECONDS)
        except grpc.aio.AioRpcError as raised:
            return raised
        return None

    async def _write(self, method: Any, message: Any, timeout: float | None) -> Any:
        try:
            seconds = self._write_timeout if timeout is None else timeout
            call = method(message, timeout=seconds, metadata=traced(self._metadata))
            response = await _ended(call, seconds)
        except grpc.RpcError as raised:
            failed: Any = raised
            was_late = failed.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            why = self._account.why(await self._probe()) if was_late else ""
            raise self._account.failed_write(failed, why) from None
        self._account.answered("writes")
        return response

    async def close(self) -> None:
        """Closes the connections."""
        if self._probing is not None:
            self._probing.cancel()
        await self._connection.close()


async def _ended(call: Any, seconds: float) -> Any:
    """Returns the answer to a call with a timeout; ends it where gRPC fails to do so.

    Raises grpc.aio.AioRpcError as the call does.
    """
    try:
        async with asyncio.timeout(seconds + _OVERDUE_SECONDS):
            return await call
    except TimeoutError:
        nothing = grpc.aio.Metadata()
        code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise grpc.aio.AioRpcError(code, nothing, nothing, "Deadline Exceeded") from None
