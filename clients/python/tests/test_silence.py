"""A client that cannot reach its server says so, in gRPC's own words, and says it seldom."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import trustme

from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    Interaction,
    InteractionReporter,
    LocalPolicy,
    RecParamsClient,
    RecParamsError,
    tls_credentials,
)

ADA = DecisionRequest("ada", "music", "calm", "evening")
LIKE = Interaction("ada", b"token", ("like",))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("recparams_client") and record.levelno == logging.WARNING
    ]


async def eventually(true: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture(params=["sync", "async"])
async def make(request: pytest.FixtureRequest) -> Any:
    """Makes a client of one kind and a function that calls a method of it."""
    made: list[Any] = []
    kind = RecParamsClient if request.param == "sync" else AsyncRecParamsClient

    def client(*args: Any, **options: Any) -> tuple[Any, Callable[..., Awaitable[Any]]]:
        one = kind(*args, **options)
        made.append(one)

        async def call(name: str, *values: Any, **named: Any) -> Any:
            method = getattr(one, name)
            if kind is AsyncRecParamsClient:
                return await method(*values, **named)
            return await asyncio.to_thread(method, *values, **named)

        return one, call

    yield client
    for one in made:
        closed = one.close()
        if closed is not None:
            await closed


async def test_a_dead_port_is_told_once_in_grpcs_words(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client, call = make("127.0.0.1:1", decision_timeout=60)
    for _ in range(3):
        decision = await call("get_recommendation_params", ADA)
        assert decision.fallback_reason == "client_unavailable"
        assert "Connection refused" in decision.fallback_detail
    (warning,) = warnings(caplog)
    assert "recparams at 127.0.0.1:1 does not answer" in warning
    assert "Connection refused" in warning
    with pytest.raises(RecParamsError, match="refused"):
        await call("record_interactions", [LIKE], timeout=60)
    stats = client.stats
    assert (stats.decisions, stats.writes, stats.failed_writes) == (0, 0, 1)
    assert stats.fallbacks == {"client_unavailable": 3}
    assert "Connection refused" in stats.problem


async def test_a_deadline_shorter_than_the_retries_still_has_a_reason(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    _, call = make("127.0.0.1:1", decision_timeout=0.001)
    assert (await call("get_recommendation_params", ADA)).is_fallback
    await eventually(lambda: warnings(caplog))
    assert "Connection refused" in warnings(caplog)[0]
    decision = await call("get_recommendation_params", ADA)
    assert "Connection refused" in decision.fallback_detail


async def test_a_late_server_is_told_from_one_that_is_not_there(
    make: Any, running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def late(request: Any, context: Any) -> Any:
        await asyncio.sleep(5)

    client, call = make(running.address, decision_timeout=0.2)
    await call("wait_for_ready", 5)
    running.service.behaviour = late
    decision = await call("get_recommendation_params", ADA)
    assert (decision.fallback_reason, decision.decision_token) == ("client_deadline", b"")
    assert decision.fallback_detail == "DEADLINE_EXCEEDED: Deadline Exceeded"
    await eventually(lambda: warnings(caplog))
    assert "it is there, but was late" in warnings(caplog)[0]
    with pytest.raises(RecParamsError, match=r"Exceeded \(127.0.0.1:\d+: it is there, but"):
        await call("record_interactions", [LIKE], timeout=0.2)
    running.service.behaviour = running.service.answer
    assert not (await call("get_recommendation_params", ADA, timeout=30)).is_fallback
    assert (client.stats.decisions, client.stats.problem) == (1, "")


@pytest.mark.parametrize("address", ["http://127.0.0.1:50051", "grpcs://host:443", ["tcp://a:1"]])
def test_urls_are_refused(address: Any) -> None:
    for kind in (RecParamsClient, LocalPolicy):
        with pytest.raises(ValueError, match="is a URL: give host:port alone, and credentials"):
            kind(address)
    with pytest.raises(ValueError, match="is a URL"):
        asyncio.run(_make_async(address))


async def _make_async(address: Any) -> None:
    AsyncRecParamsClient(address)


async def test_grpcs_own_schemes_are_taken(make: Any, running: Any) -> None:
    _, call = make(f"dns:///localhost:{running.port}")
    await call("wait_for_ready", 10)
    assert not (await call("get_recommendation_params", ADA, timeout=30)).is_fallback


async def test_waiting_is_for_a_server_that_answers(make: Any, start: Any) -> None:
    first = await start()
    await first.server.stop(0)
    _, call = make(first.address)
    with pytest.raises(RecParamsError, match=r"not ready after 0.2 s: .*refused") as raised:
        await call("wait_for_ready", 0.2)
    assert raised.value.code is grpc.StatusCode.UNAVAILABLE
    waiting = asyncio.create_task(call("wait_for_ready", 20))
    await asyncio.sleep(0.1)
    await start(first.port)
    await waiting


async def test_tls_against_plain_text_is_named(make: Any, running: Any, tmp_path: Any) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    _, call = make(running.address, credentials=tls_credentials(tmp_path / "ca.pem"))
    with pytest.raises(RecParamsError, match=r"(?i)handshake failed"):
        await call("wait_for_ready", 2)


def test_a_policy_that_never_comes_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with LocalPolicy("127.0.0.1:1", decision_timeout=60) as policy:
        deadline = time.monotonic() + 60
        while "refused" not in policy.problem:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        decision = policy.get_recommendation_params(ADA)
        assert policy.stats.fallbacks == {"client_unavailable": 1}
    assert "refused" in decision.fallback_detail
    assert any("Connection refused" in one for one in warnings(caplog))


def test_a_reporter_that_cannot_deliver_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with (
        RecParamsClient("127.0.0.1:1", write_timeout=60) as client,
        InteractionReporter(client, interval=0.01, flush_seconds=0) as reporter,
    ):
        reporter.report(LIKE)
        deadline = time.monotonic() + 60
        while not warnings(caplog):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    waits, lost = warnings(caplog)[:2]
    assert "interactions wait to be recorded" in waits and "refused" in waits
    assert "interactions were given up: it was closed before" in lost
