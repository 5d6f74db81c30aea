"""The servers that backends test with."""

import asyncio
import time
from datetime import datetime, timedelta, timezone

import grpc
import pytest

from recparams_client import (
    DecisionRequest,
    Interaction,
    InteractionReporter,
    PersonalityProfile,
    RecordResult,
    RecParamsError,
)
from recparams_client.testing import FakeServer, recommendation

PROFILE = PersonalityProfile(75, 60, 40, 80, 30)
ADA = DecisionRequest("ada", "music", "calm", "evening", personality=PROFILE)
TABLE = {("music", "calm", "evening"): ("high", "focused", "familiar")}


def action(decision: object) -> tuple[str, ...]:
    return tuple(getattr(decision, name) for name in ("energy", "diversity", "novelty"))


def test_it_decides_as_it_was_told_then_by_the_rules(recparams: FakeServer) -> None:
    recparams.will_decide(
        recommendation("high", "focused", "mixed"),
        recommendation(model_version=9, propensity=0.25, source="exploration"),
    )
    with recparams.client() as client:
        first, second, *rest = client.batch_get_recommendation_params([ADA, ADA, ADA])
    assert action(first) == ("high", "focused", "mixed")
    assert first.params.min_energy == 0.6 and first.params.genre_count == 1
    assert (second.model_version, second.propensity, second.source) == (9, 0.25, "exploration")
    assert action(rest[0]) == ("low", "diverse", "exploratory")
    assert (rest[0].source, rest[0].fallback_reason) == ("rule_based", "no_model")
    assert not any(one.is_fallback for one in (first, second, *rest))
    assert len({one.decision_token for one in (first, second, *rest)}) == 3
    assert recparams.requests == [ADA] * 3


async def test_it_keeps_what_it_is_told(recparams: FakeServer) -> None:
    zone = timezone(timedelta(hours=2))
    asked = DecisionRequest("ada", "video", timestamp=datetime(2026, 3, 1, 20, tzinfo=zone))
    async with recparams.async_client() as client:
        assert await client.put_personality_profiles({"ada": PROFILE}) == 1
        decision = await client.get_recommendation_params(asked)
        token = decision.decision_token
        one = Interaction("ada", token, ("like", "share"), 0.5, -0.25, asked.timestamp)
        assert await client.record_interactions([one]) == RecordResult(1, 0)
        assert await client.record_interactions([one]) == RecordResult(0, 1)
    assert recparams.profiles == {"ada": PROFILE}
    (kept,) = recparams.requests
    assert (kept.mood, kept.time_of_day, kept.timestamp) == ("neutral", None, asked.timestamp)
    assert kept.timestamp is not None and kept.timestamp.utcoffset() == timedelta(hours=2)
    assert recparams.interactions == [one]


def test_it_refuses_what_the_server_would(recparams: FakeServer) -> None:
    with recparams.client() as client:
        mine = client.get_recommendation_params(ADA).decision_token
        client.record_interactions([Interaction("ada", mine, ("like",))])
        for user, token in (("ben", mine), ("ada", b"made up")):
            good = Interaction("ada", mine, ("skip",))
            with pytest.raises(RecParamsError) as raised:
                client.record_interactions([good, Interaction(user, token, ("like",))])
            assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
            assert raised.value.violations[0].field == "interactions[1].decision_token"
        assert len(recparams.interactions) == 1
        with pytest.raises(RecParamsError, match=r"profiles\[0\].personality.neuroticism: must"):
            client.put_personality_profiles({"ada": PersonalityProfile(1, 2, 3, 4, 500)})
        with pytest.raises(RecParamsError, match="user_id"):
            client.get_recommendation_params(DecisionRequest("", "music", time_of_day="night"))


def test_it_can_be_away(recparams: FakeServer) -> None:
    recparams.will_decide(recommendation("high"))
    with recparams.client() as client:
        started = time.monotonic()
        with recparams.away():
            decision = client.get_recommendation_params(ADA)
            with pytest.raises(RecParamsError, match="UNAVAILABLE: the test says"):
                client.record_interactions([Interaction("ada", b"token", ("like",))])
        with recparams.away("client_deadline"):
            late = client.get_recommendation_params(ADA)
        assert time.monotonic() - started < 1
        assert (decision.fallback_reason, late.fallback_reason) == (
            "client_unavailable",
            "client_deadline",
        )
        assert "the test says that the server is away" in decision.fallback_detail
        assert client.get_recommendation_params(ADA).energy == "high"


def test_a_table_is_served_by_call_and_in_process(recparams: FakeServer) -> None:
    recparams.serve(TABLE, version=3)
    other = DecisionRequest("ada", "music", "sad", "evening", personality=PROFILE)
    unknown = DecisionRequest("ada", "music", "calm", "evening")
    with (
        recparams.local_policy() as policy,
        recparams.client() as client,
        InteractionReporter(client, interval=0.01) as reporter,
    ):
        for ask in (policy.get_recommendation_params, client.get_recommendation_params):
            decision = ask(ADA)
            assert action(decision) == TABLE["music", "calm", "evening"]
            assert (decision.model_version, decision.source) == (3, "learned")
            assert ask(other).source == "rule_based"
            assert (ask(unknown).fallback_reason, ask(unknown).model_version) == ("no_profile", 0)
            reporter.report(Interaction("ada", decision.decision_token, ("like",)))
        assert reporter.flush(10)
        assert (reporter.delivered, len(recparams.interactions)) == (2, 2)
        token = policy.decide(ADA).decision_token
        with pytest.raises(RecParamsError, match="decision_token"):
            client.record_interactions([Interaction("ben", token, ("like",))])
        recparams.serve({}, version=4)
        deadline = time.monotonic() + 10
        while policy.model_version != 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert policy.get_recommendation_params(ADA).source == "rule_based"


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({("opera", "calm", "evening"): ("high", "focused", "familiar")}, "no context is"),
        ({("music", "calm", "evening"): ("loud", "focused", "familiar")}, "no action is loud"),
    ],
)
def test_a_wrong_name_in_a_table_is_told(
    recparams: FakeServer, table: dict[tuple[str, str, str], tuple[str, str, str]], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        recparams.serve(table)
    with recparams.client() as client:
        assert client.get_recommendation_params(ADA).model_version == 0


async def test_many_at_a_time(recparams: FakeServer) -> None:
    async with recparams.async_client() as client:
        await asyncio.gather(*(client.get_recommendation_params(ADA) for _ in range(50)))
    assert len(recparams.requests) == 50
