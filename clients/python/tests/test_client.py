"""Both clients against a real server on a real channel."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    RecordResult,
    RecParamsClient,
    RecParamsError,
    Violation,
)

ADA = DecisionRequest(
    "ada",
    content_type="music",
    mood="calm",
    time_of_day="evening",
    personality=PersonalityProfile(75, 60, 40, 80, 30),
)


class Both:
    """The methods of one client, sync or async, awaited alike."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._client, name)

        async def call(*args: Any, **options: Any) -> Any:
            if isinstance(self._client, AsyncRecParamsClient):
                return await method(*args, **options)
            return await asyncio.to_thread(method, *args, **options)

        return call


@pytest.fixture(params=[RecParamsClient, AsyncRecParamsClient])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Callable[..., Both]]:
    """Makes clients of one kind."""
    made = []

    def client(*args: Any, **options: Any) -> Both:
        made.append(Both(request.param(*args, **options)))
        return made[-1]

    yield client
    for one in made:
        await one.close()


async def test_a_decision(make: Any, running: Any) -> None:
    client = make(running.address, decision_timeout=30)
    decision = await client.get_recommendation_params(ADA)
    assert decision.params.as_dict() == {
        "min_energy": 0.6,
        "max_energy": 1.0,
        "valence": 0.8,
        "genre_count": 3,
        "exploration_rate": 0.3,
        "popularity_min": 25,
        "popularity_max": 75,
    }
    assert (decision.energy, decision.diversity, decision.novelty) == ("high", "balanced", "mixed")
    assert (decision.decision_token, decision.model_version) == (b"token", 7)
    assert (decision.policy_arm, decision.source) == ("rl", "learned")
    assert (decision.propensity, decision.fallback_reason) == (0.7, "")
    assert not decision.is_fallback
    sent = running.service.received[0]
    assert (sent.user_id, sent.content_type, sent.mood, sent.time_of_day) == ("ada", 1, 5, 3)
    assert sent.personality.openness == 75


async def test_a_timestamp_carries_its_offset(make: Any, running: Any) -> None:
    client = make(running.address, decision_timeout=30)
    zone = timezone(timedelta(hours=5, minutes=30))
    moment = datetime(2026, 3, 1, 23, 15, tzinfo=zone)
    await client.get_recommendation_params(DecisionRequest("ada", "video", timestamp=moment))
    sent = running.service.received[0]
    assert sent.timestamp.ToDatetime(UTC) == moment
    assert sent.utc_offset_minutes == 330
    assert not sent.HasField("personality")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (DecisionRequest("ada", "opera", time_of_day="night"), "music, video, game"),
        (DecisionRequest("ada", "", time_of_day="night"), "content_type"),
        (DecisionRequest("ada", "music", mood="bored", time_of_day="night"), "neutral, happy"),
        (DecisionRequest("ada", "music", time_of_day="noon"), "morning"),
        (DecisionRequest("ada", "music"), "time_of_day is required"),
        (DecisionRequest("ada", "music", timestamp=datetime(2026, 1, 1)), "aware"),
    ],
)
async def test_unknown_names_are_refused_before_sending(
    make: Any, running: Any, request_: DecisionRequest, says: str
) -> None:
    client = make(running.address)
    with pytest.raises(ValueError, match=says):
        await client.get_recommendation_params(request_)
    assert running.service.received == []


async def test_batches_keep_their_order(make: Any, running: Any) -> None:
    client = make(running.address, decision_timeout=30)
    requests = [DecisionRequest(f"u{n}", "game", time_of_day="night") for n in range(3)]
    assert len(await client.batch_get_recommendation_params(requests)) == 3
    assert [one.user_id for one in running.service.received[0].requests] == ["u0", "u1", "u2"]


async def test_reactions_and_profiles(make: Any, running: Any) -> None:
    client = make(running.address)
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    reactions = [
        Interaction("ada", b"t", ("like", "share"), 0.5, -0.25, moment, interaction_id="i1"),
        Interaction("ada", b"t", ("impression",)),
    ]
    assert await client.record_interactions(reactions) == RecordResult(2, 0)
    first, second = running.service.received[0].interactions
    assert (first.interaction_id, list(first.reactions)) == ("i1", [1, 5])
    assert (first.completion_rate, first.mood_change) == (0.5, -0.25)
    assert first.occurred_at.ToDatetime(UTC) == moment
    assert len(second.interaction_id) == 32
    assert not second.HasField("completion_rate")
    assert await client.put_personality_profiles({"ada": ADA.personality}) == 1
    with pytest.raises(ValueError, match="impression"):
        await client.record_interactions([Interaction("ada", b"t", ("yawn",))])
    with pytest.raises(ValueError, match="fallback"):
        await client.record_interactions([Interaction("ada", b"", ("like",))])


async def late(request: Any, context: Any) -> Any:
    await asyncio.sleep(5)


async def test_rules_answer_when_the_server_is_late(make: Any, running: Any) -> None:
    running.service.behaviour = late
    client = make(running.address, decision_timeout=0.2)
    started = time.monotonic()
    decision = await client.get_recommendation_params(ADA)
    batch = await client.batch_get_recommendation_params([ADA, ADA])
    assert time.monotonic() - started < 2
    for one in (decision, *batch):
        assert one.is_fallback
        assert one.fallback_reason == "client_deadline"
        assert (one.source, one.policy_arm, one.propensity) == ("rule_based", "rule_based", 1.0)
        assert (one.decision_token, one.model_version) == (b"", 0)
        assert (one.energy, one.diversity, one.novelty) == ("low", "diverse", "exploratory")
        assert one.params.genre_count == 5


async def test_rules_answer_when_nobody_is_there(make: Any) -> None:
    client = make("127.0.0.1:1", decision_timeout=1)
    decision = await client.get_recommendation_params(ADA)
    assert decision.fallback_reason == "client_unavailable"
    with pytest.raises(RecParamsError) as raised:
        await client.record_interactions([Interaction("ada", b"t", ("like",))], timeout=0.5)
    assert raised.value.code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


async def test_a_timeout_of_nothing_is_one(make: Any, running: Any) -> None:
    running.service.behaviour = late
    client = make(running.address, decision_timeout=30)
    started = time.monotonic()
    assert (await client.get_recommendation_params(ADA, timeout=0)).is_fallback
    assert time.monotonic() - started < 1


async def test_unavailable_is_retried(make: Any, running: Any) -> None:
    fail = running.service.answer

    async def twice(request: Any, context: Any) -> Any:
        if len(running.service.received) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return await fail(request, context)

    running.service.behaviour = twice
    client = make(running.address, decision_timeout=30)
    assert not (await client.get_recommendation_params(ADA)).is_fallback
    assert len(running.service.received) == 3
    running.service.received.clear()
    assert await client.put_personality_profiles({"ada": ADA.personality}) == 1
    assert len(running.service.received) == 3


async def unavailable(request: Any, context: Any) -> Any:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "not today")


async def test_retries_end(make: Any, running: Any) -> None:
    running.service.behaviour = unavailable
    client = make(running.address, decision_timeout=30)
    decision = await client.get_recommendation_params(ADA)
    assert decision.fallback_reason == "client_unavailable"
    assert len(running.service.received) == 5


async def test_retries_keep_within_the_timeout(make: Any, running: Any) -> None:
    running.service.behaviour = unavailable
    client = make(running.address)
    started = time.monotonic()
    with pytest.raises(RecParamsError):
        await client.put_personality_profiles({"ada": ADA.personality}, timeout=0.15)
    assert time.monotonic() - started < 0.5
    assert len(running.service.received) < 5


async def test_a_server_that_comes_back_is_found(make: Any, start: Any) -> None:
    first = await start()
    client = make(first.address, decision_timeout=1)
    assert not (await client.get_recommendation_params(ADA)).is_fallback
    await first.server.stop(0)
    for _ in range(20):
        assert (await client.get_recommendation_params(ADA)).is_fallback
        await asyncio.sleep(0.05)
    await start(first.port)
    back = time.monotonic()
    while (await client.get_recommendation_params(ADA)).is_fallback:
        assert time.monotonic() - back < 4
        await asyncio.sleep(0.02)


async def test_calls_go_round_all_replicas(make: Any, start: Any) -> None:
    one, other = await start(), await start()
    client = make([one.address, other.address], decision_timeout=30)
    for _ in range(40):
        await client.get_recommendation_params(ADA)
    assert min(len(one.service.received), len(other.service.received)) >= 10
    await one.server.stop(0)
    before = len(other.service.received)
    for _ in range(10):
        assert not (await client.get_recommendation_params(ADA)).is_fallback
    assert len(other.service.received) == before + 10


async def test_refusals_are_decoded(make: Any, running: Any) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="user_id", description="is required")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    info = error_details_pb2.ErrorInfo(reason="WHY", domain="recparams", metadata={"a": "b"})
    status = status_pb2.Status(code=3, message="no")
    for detail in (bad, retry, info):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)

    async def refuse(request: Any, context: Any) -> Any:
        trailer = (("grpc-status-details-bin", status.SerializeToString()),)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no", trailer)

    running.service.behaviour = refuse
    client = make(running.address, decision_timeout=30)
    for call in (
        client.get_recommendation_params(ADA),
        client.batch_get_recommendation_params([ADA]),
        client.record_interactions([Interaction("ada", b"t", ("like",))]),
    ):
        with pytest.raises(RecParamsError) as raised:
            await call
        error = raised.value
        assert error.code == grpc.StatusCode.INVALID_ARGUMENT
        assert error.message == "no"
        assert error.violations == (Violation("user_id", "is required"),)
        assert (error.reason, error.metadata) == ("WHY", {"a": "b"})
        assert error.retry_after == 1.5
    assert len(running.service.received) == 3


async def test_an_error_without_details(make: Any, running: Any) -> None:
    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")

    running.service.behaviour = refuse
    client = make(running.address, decision_timeout=30)
    with pytest.raises(RecParamsError) as raised:
        await client.get_recommendation_params(ADA)
    assert (raised.value.violations, raised.value.reason) == ((), "")
    assert raised.value.retry_after is None


async def test_garbled_details_do_not_hide_the_error(make: Any, running: Any) -> None:
    async def refuse(request: Any, context: Any) -> Any:
        trailer = (("grpc-status-details-bin", b"\xff\xff"),)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no", trailer)

    running.service.behaviour = refuse
    client = make(running.address, decision_timeout=30)
    with pytest.raises(RecParamsError, match="no") as raised:
        await client.get_recommendation_params(ADA)
    assert raised.value.violations == ()


def test_an_address_is_needed() -> None:
    with pytest.raises(ValueError, match="address"):
        RecParamsClient([])


async def test_context_managers_close(running: Any) -> None:
    async with AsyncRecParamsClient(running.address, decision_timeout=30) as client:
        assert not (await client.get_recommendation_params(ADA)).is_fallback
    with RecParamsClient(running.address) as blocking:
        pass
    with pytest.raises(ValueError, match="closed"):
        blocking.get_recommendation_params(ADA)


async def test_an_async_client_says_that_its_event_loop_is_another_processs(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncRecParamsClient(running.address) as client:
        await client.wait_for_ready()
        monkeypatch.setattr(os, "getpid", lambda: 0)
        with pytest.raises(RuntimeError, match=r"before os\.fork"):
            await client.get_recommendation_params(ADA)
