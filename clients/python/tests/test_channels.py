"""What callers bring to a channel of their own: loops, options, interceptors, trace context."""

import asyncio
import os
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace

from recparams_client import AsyncRecParamsClient, DecisionRequest, RecParamsClient
from recparams_client.testing import FakeServer

ADA = DecisionRequest("ada", "music", "calm", "evening")
SPAN = trace.SpanContext(
    trace_id=0x0AF7651916CD43DD8448EB211C80319C,
    span_id=0xB7AD6B7169203331,
    is_remote=False,
    trace_flags=trace.TraceFlags(1),
)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_an_async_client_of_a_module_works_in_each_loop_that_follows(
    recparams: FakeServer,
) -> None:
    client = recparams.async_client()

    async def ask() -> bool:
        return (await client.get_recommendation_params(ADA)).is_fallback

    async def last() -> None:
        assert not await ask()
        await client.close()

    assert not asyncio.run(ask())
    assert not asyncio.run(ask())
    asyncio.run(last())
    assert client.stats.decisions == 3


async def test_two_loops_at_a_time_are_told(recparams: FakeServer) -> None:
    async with recparams.async_client() as client:
        await client.get_recommendation_params(ADA)

        def elsewhere() -> None:
            asyncio.run(client.wait_for_ready())

        with pytest.raises(RuntimeError, match="used by another event loop, which still runs"):
            await asyncio.to_thread(elsewhere)
        assert not (await client.get_recommendation_params(ADA)).is_fallback


async def test_one_that_was_not_used_can_be_closed() -> None:
    await AsyncRecParamsClient("127.0.0.1:1").close()


def test_options_go_before_the_librarys_own(recparams: FakeServer) -> None:
    small = [("grpc.max_receive_message_length", 1)]
    with recparams.client(options=small) as client:
        decision = client.get_recommendation_params(ADA)
    assert decision.fallback_reason == "client_unavailable"
    assert "larger than max" in decision.fallback_detail


class Counting(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Counts calls."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method)
        return continuation(details, request)


class AsyncCounting(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Counts calls."""

    def __init__(self) -> None:
        self.methods: list[Any] = []

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method)
        return await continuation(details, request)


async def test_interceptors_see_every_call(recparams: FakeServer) -> None:
    seen, seen_async = Counting(), AsyncCounting()
    with recparams.client(interceptors=[seen]) as client:
        client.get_recommendation_params(ADA)
        client.wait_for_ready()
    async with recparams.async_client(interceptors=[seen_async]) as client_async:
        await client_async.get_recommendation_params(ADA)
    decision = "/recparams.v1.RecommendationService/GetRecommendationParams"
    assert seen.methods == [decision, "/grpc.health.v1.Health/Check"]
    assert [os.fsdecode(one) for one in seen_async.methods] == [decision]


async def test_the_trace_context_travels(running: Any) -> None:
    found: list[dict[str, str]] = []

    async def answer(request: Any, context: Any) -> Any:
        found.append(dict(context.invocation_metadata()))
        return await running.service.answer(request, context)

    running.service.behaviour = answer
    async with AsyncRecParamsClient(running.address, api_key="key", decision_timeout=30) as client:
        with trace.use_span(trace.NonRecordingSpan(SPAN)):
            await client.get_recommendation_params(ADA)
        await client.get_recommendation_params(ADA)
    with RecParamsClient(running.address, decision_timeout=30) as blocking:

        def ask() -> None:
            with trace.use_span(trace.NonRecordingSpan(SPAN)):
                blocking.get_recommendation_params(ADA)

        await asyncio.to_thread(ask)
    assert [one.get("traceparent") for one in found] == [TRACEPARENT, None, TRACEPARENT]
    assert [one.get("x-api-key") for one in found] == ["key", "key", None]
