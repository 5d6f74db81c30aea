"""What surrounds every RPC: request ids, rates, deadlines and counts."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams_client.channel import SERVICE_CONFIG
from recparams_server.app import _DESCRIPTORS, App
from recparams_server.rpc import methods
from recparams_server.rpc.rate_limit import RateLimit
from recparams_server.settings import Settings
from recparams_server.settings.callers import Role, key_hash
from tests.support import ADMIN, Client, connect, failure_of, logged, request, wait_serving

KEYS = {"web": "the key of the web backend", "jobs": "the key of the jobs"}
CALLERS = ",".join(f"{name}:recommend+record:{key_hash(key)}" for name, key in KEYS.items())
METHODS = [method for service in _DESCRIPTORS for method in service.methods]


@contextlib.asynccontextmanager
async def serving(settings: Settings, **changes: Any) -> AsyncIterator[Client]:
    """A client of a server with changed settings."""
    app = App(Settings(**{**settings.model_dump(), **changes}))
    await app.start()
    try:
        async with connect(f"127.0.0.1:{app.port}") as client:
            await wait_serving(client)
            yield client
    finally:
        await app.stop()


def counted(method: str, code: str) -> float:
    """Calls of this process that a scrape tells of."""
    labels = {"method": method, "code": code}
    return REGISTRY.get_sample_value("recparams_rpcs_total", labels) or 0.0


def test_every_rpc_has_a_policy() -> None:
    assert sorted(method.name for method in METHODS) == sorted(methods.METHODS)


def test_what_is_quick_is_unary_and_what_is_endless_a_stream() -> None:
    streams = {method.name: method.server_streaming for method in METHODS}
    for name, policy in methods.METHODS.items():
        assert policy.kind is not methods.Kind.ENDLESS or streams[name]
        assert policy.kind is not methods.Kind.QUICK or not streams[name]


def test_the_client_treats_methods_as_the_server_does() -> None:
    """Retries are for the calls of applications: other ones are not all idempotent."""
    retried = [
        {name["method"] for name in config["name"]} for config in SERVICE_CONFIG["methodConfig"]
    ]
    calls = {
        name: policy
        for name, policy in methods.METHODS.items()
        if policy.role in (Role.RECOMMEND, Role.RECORD) and policy.kind is not methods.Kind.ENDLESS
    }
    quick = {name for name, policy in calls.items() if policy.kind is methods.Kind.QUICK}
    assert retried == [quick, set(calls) - quick]


async def test_bytes_that_are_no_message_are_an_invalid_argument(client: Client) -> None:
    for method in METHODS:
        if not GetMessageClass(method.input_type).DESCRIPTOR.fields:
            continue
        path = f"/{method.containing_service.full_name}/{method.name}"
        kinds = ("unary", "stream")
        kind = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
        sent: Any = iter([b"\x0a\xff"]) if method.client_streaming else b"\x0a\xff"
        call = getattr(client.channel, kind)(path)(sent, metadata=ADMIN, timeout=20)
        failure = await failure_of(call.read() if method.server_streaming else call)
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT, path
        assert failure.violations == {"request": f"is not a {method.input_type.name}"}


async def test_errors_name_the_request(client: Client) -> None:
    bad = pb.GetRecommendationParamsRequest()
    ask = client.recommendation.GetRecommendationParams
    failure = await failure_of(ask(bad, metadata=(("x-request-id", "checkout-17"),)))
    assert failure.request_id == "checkout-17"
    made_up = {(await failure_of(ask(bad))).request_id for _ in range(3)}
    assert len(made_up) == 3
    for unfit in ("", "x" * 129):
        failure = await failure_of(ask(bad, metadata=(("x-request-id", unfit),)))
        assert len(failure.request_id) == 16


async def test_the_log_names_the_request(start_server: Any, database_url: str) -> None:
    server = start_server()
    admin = await asyncpg.connect(database_url)
    async with connect(server.target) as client:
        await wait_serving(client)
        await admin.execute("ALTER TABLE system_tasks RENAME COLUMN executed_at TO elsewhere")
        listing = spb.GetSystemHealthRequest()
        call = client.system.GetSystemHealth(listing, metadata=(("x-request-id", "op-1"),))
        failure = await failure_of(call)
        assert failure.code == grpc.StatusCode.INTERNAL
        assert failure.request_id == "op-1"
    await admin.close()
    (line,) = [one for one in server.events() if one["event"] == "internal error"]
    assert line["request_id"] == "op-1"
    assert line["incident"] in failure.message
    assert "elsewhere" not in json.dumps(failure.metadata) + failure.message


async def test_a_call_has_its_time(settings: Settings, db: asyncpg.Connection) -> None:
    """Whether the server's limit ends it or the caller's: nothing of it is stored."""
    late, gone = counted("RecordInteractions", "DEADLINE_EXCEEDED"), 0.0
    async with serving(settings, call_timeout_seconds=2) as client:
        call = client.recommendation.RecordInteractions
        sent = pb.RecordInteractionsRequest(interactions=[logged("i1", "ada")])
        async with db.transaction():
            await db.execute("LOCK TABLE interactions")
            failure = await failure_of(call(sent))
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert failure.reason == "CALL_TIMEOUT"
            assert counted("RecordInteractions", "DEADLINE_EXCEEDED") == late + 1
            failure = await failure_of(call(sent, timeout=0.2))
            assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
            # Decisions do not wait for the database.
            await client.recommendation.GetRecommendationParams(request())
            async with asyncio.timeout(30):
                while gone <= 0:
                    await asyncio.sleep(0.01)
                    gone = counted("RecordInteractions", "DEADLINE_EXCEEDED") - late - 1
        assert await db.fetchval("SELECT count(*) FROM interactions") == 0
        assert (await call(sent)).recorded == 1


async def test_a_caller_has_its_rate(settings: Settings) -> None:
    keys = {"authorization": "keys", "callers": CALLERS}
    async with serving(settings, max_calls_per_second=5, **keys) as client:

        async def outcomes(sent: Any) -> list[str]:
            found = []
            for _ in range(8):
                try:
                    await client.recommendation.GetRecommendationParams(request(), metadata=sent)
                    found.append("OK")
                except grpc.aio.AioRpcError as refused:
                    found.append(refused.code().name)
            return found

        web, jobs = ((("x-api-key", key),) for key in KEYS.values())
        found = await outcomes(web)
        assert found[:5] == ["OK"] * 5
        assert "RESOURCE_EXHAUSTED" in found
        assert (await outcomes(jobs))[:5] == ["OK"] * 5
        failure = await failure_of(
            client.recommendation.GetRecommendationParams(request(), metadata=web)
        )
        assert failure.reason == "TOO_MANY_CALLS"
        assert failure.retry_seconds is not None
        assert 0 < failure.retry_seconds <= 0.2
        await asyncio.sleep(failure.retry_seconds)
        await client.recommendation.GetRecommendationParams(request(), metadata=web)


async def test_callers_without_a_name_are_told_by_their_address(settings: Settings) -> None:
    async with serving(settings, max_calls_per_second=2) as client:
        ask = client.recommendation.GetRecommendationParams
        results = await asyncio.gather(*(ask(request()) for _ in range(20)), return_exceptions=True)
        refused = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
        assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert 2 <= len(results) - len(refused) < 20


@given(
    st.floats(0.1, 1000.0),
    st.lists(st.tuples(st.floats(0.0, 0.5), st.sampled_from("ab")), min_size=1, max_size=200),
)
def test_no_stretch_of_time_has_more_than_its_rate(
    rate: float, calls: list[tuple[float, str]]
) -> None:
    now = 0.0
    limit = RateLimit(rate, clock=lambda: now)
    let_in: dict[str, list[float]] = {"a": [], "b": []}
    for pause, caller in calls:
        now += pause
        wait = limit.take(caller)
        assert 0.0 <= wait <= 1.0 / rate + 1e-9
        if wait == 0.0:
            let_in[caller].append(now)
    assert let_in[calls[0][1]][0] == calls[0][0]
    for times in let_in.values():
        for first in range(len(times)):
            for last in range(first, len(times)):
                stretch = times[last] - times[first]
                assert last - first + 1 <= max(rate, 1.0) + rate * stretch + 1e-6


async def test_calls_are_counted_and_timed(client: Client) -> None:
    name = "GetRecommendationParams"
    times = ("recparams_rpc_seconds_count", "recparams_rpc_seconds_sum")
    good, bad = counted(name, "OK"), counted(name, "INVALID_ARGUMENT")
    count, total = (REGISTRY.get_sample_value(one, {"method": name}) for one in times)
    for _ in range(5):
        await client.recommendation.GetRecommendationParams(request())
    await failure_of(
        client.recommendation.GetRecommendationParams(pb.GetRecommendationParamsRequest())
    )
    assert counted(name, "OK") == good + 5
    assert counted(name, "INVALID_ARGUMENT") == bad + 1
    labels = {"method": name}
    assert REGISTRY.get_sample_value(times[0], labels) == (count or 0.0) + 6
    assert 0 < (REGISTRY.get_sample_value(times[1], labels) or 0.0) - (total or 0.0) < 1
    all_of_them = REGISTRY.get_sample_value(
        "recparams_rpc_seconds_bucket", {"method": name, "le": "+Inf"}
    )
    assert all_of_them == REGISTRY.get_sample_value(times[0], labels)


async def test_connections_end_in_good_order_when_they_are_old(settings: Settings) -> None:
    async with serving(settings, max_connection_age_seconds=0.5) as client:
        channel = client.channel
        assert channel.get_state() == grpc.ChannelConnectivity.READY
        async with asyncio.timeout(30):
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await client.recommendation.GetRecommendationParams(request())


@pytest.mark.parametrize("name", ["call_timeout_seconds", "long_call_timeout_seconds"])
def test_there_is_always_a_limit(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings(**{name: 0})
