"""The asyncio client, with the methods of the blocking one."""

import os
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from recparams.v1 import recommendation_pb2_grpc
from recparams_client import conversion, fallback
from recparams_client.channel import (
    DECISION_TIMEOUT,
    WRITE_TIMEOUT,
    connect,
    key_metadata,
)
from recparams_client.errors import from_rpc_error
from recparams_client.types import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    Recommendation,
    RecordResult,
)


class AsyncRecParamsClient:
    """A client that asks for decisions and reports reactions, within one event loop.

    Args:
        address: host:port, any gRPC target (as in "dns:///recparams:50051"), or a sequence of
            ip:port; calls go round all of them.
        decision_timeout: seconds until the rules answer instead of the server.
        write_timeout: seconds for recording, retries included.
        credentials: for TLS, as from `tls_credentials`; None is plain text.
        api_key: the caller's secret, where the server asks who calls; send it over TLS only.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        decision_timeout: float = DECISION_TIMEOUT,
        write_timeout: float = WRITE_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
    ) -> None:
        self._channel = connect(grpc.aio, address, credentials)
        self._own_stub = recommendation_pb2_grpc.RecommendationServiceStub(self._channel)
        self._process = os.getpid()
        self._decision_timeout = decision_timeout
        self._write_timeout = write_timeout
        self._metadata = key_metadata(api_key)

    @property
    def _stub(self) -> Any:
        """The stub. Raises RuntimeError in the child of a fork, where its event loop is not."""
        if self._process != os.getpid():
            raise RuntimeError("this client was made before os.fork(): make it in the child")
        return self._own_stub

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
            response = await self._stub.GetRecommendationParams(
                message,
                timeout=self._decision_timeout if timeout is None else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as raised:
            return fallback.recommend(message, fallback.reason_or_raise(raised))
        return conversion.recommendation(response)

    async def batch_get_recommendation_params(
        self, requests: Iterable[DecisionRequest], *, timeout: float | None = None
    ) -> list[Recommendation]:
        """Returns decisions for up to 256 people, in order. Otherwise as the single call."""
        message = conversion.batch_message(requests)
        try:
            response = await self._stub.BatchGetRecommendationParams(
                message,
                timeout=self._decision_timeout if timeout is None else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as raised:
            reason = fallback.reason_or_raise(raised)
            return [fallback.recommend(request, reason) for request in message.requests]
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
        response = await self._write(self._stub.RecordInteractions, message, timeout)
        return conversion.record_result(response)

    async def put_personality_profiles(
        self, profiles: Mapping[str, PersonalityProfile], *, timeout: float | None = None
    ) -> int:
        """Stores up to 1000 profiles by user id, all or none, and returns their number.

        Raises:
            RecParamsError: refused, or not stored within the timeout.
        """
        message = conversion.profiles_message(profiles)
        response = await self._write(self._stub.PutPersonalityProfiles, message, timeout)
        return int(response.stored)

    async def _write(self, method: Any, message: Any, timeout: float | None) -> Any:
        try:
            return await method(
                message,
                timeout=self._write_timeout if timeout is None else timeout,
                metadata=self._metadata,
            )
        except grpc.RpcError as raised:
            raise from_rpc_error(raised) from None

    async def close(self) -> None:
        """Closes the connections."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
