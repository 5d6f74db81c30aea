"""The OpenFeature provider on a policy of a fake server."""

from collections.abc import Iterator

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import Reason
from openfeature.track import TrackingEventDetails

from examples.openfeature_provider import RecParamsProvider
from recparams_client import InteractionReporter, LocalPolicy
from recparams_client.testing import FakeServer

ADA = EvaluationContext(
    "ada",
    {
        "content_type": "music",
        "mood": "calm",
        "time_of_day": "evening",
        "openness": 75,
        "conscientiousness": 60,
        "extraversion": 40,
        "agreeableness": 80,
        "neuroticism": 30,
    },
)


@pytest.fixture
def reporter(recparams: FakeServer) -> Iterator[InteractionReporter]:
    with recparams.client() as client, InteractionReporter(client, interval=0.01) as one:
        yield one


@pytest.fixture
def features(recparams: FakeServer, reporter: InteractionReporter) -> Iterator[OpenFeatureClient]:
    recparams.serve({("music", "calm", "evening"): ("high", "focused", "familiar")}, version=3)
    with recparams.local_policy() as policy:
        api.set_provider(RecParamsProvider(policy, reporter))
        yield api.get_client()
        api.clear_providers()


def test_a_decision_and_its_reaction(
    recparams: FakeServer, features: OpenFeatureClient, reporter: InteractionReporter
) -> None:
    found = features.get_object_details("recommendation", {}, ADA)
    assert (found.error_code, found.reason) == (None, Reason.TARGETING_MATCH)
    assert found.value["min_energy"] == 0.6 and found.value["genre_count"] == 1
    assert (found.variant, found.flag_metadata["model_version"]) == ("high focused familiar", 3)
    details = TrackingEventDetails(0.5, {"decision": str(found.flag_metadata["decision"])})
    features.track("like", EvaluationContext("ada"), details)
    features.track("like", EvaluationContext("ada"))
    assert reporter.flush(10) and reporter.delivered == 1
    (recorded,) = recparams.interactions
    assert (recorded.user_id, recorded.reactions) == ("ada", ("like",))
    assert recorded.completion_rate == 0.5


def test_what_cannot_be_evaluated_is_the_default(features: OpenFeatureClient) -> None:
    def error(flag: str, context: EvaluationContext) -> tuple[object, object]:
        found = features.get_object_details(flag, {"genre_count": 2}, context)
        assert found.value == {"genre_count": 2}
        return found.error_code, found.reason

    wrong = ErrorCode.INVALID_CONTEXT, Reason.ERROR
    bored = EvaluationContext("ada", {**ADA.attributes, "mood": "bored"})
    assert error("recommendation", bored) == wrong
    assert error("recommendation", EvaluationContext("ada", {"openness": 75})) == wrong
    assert error("recommendation", EvaluationContext()) == (
        ErrorCode.TARGETING_KEY_MISSING,
        Reason.ERROR,
    )
    assert error("energy", ADA)[0] is ErrorCode.FLAG_NOT_FOUND
    assert features.get_float_value("recommendation", 0.5, ADA) == 0.5


def test_without_a_policy_the_rules_are_the_default(reporter: InteractionReporter) -> None:
    with LocalPolicy("127.0.0.1:1", decision_timeout=60) as policy:
        found = RecParamsProvider(policy, reporter).resolve_object_details(
            "recommendation", {}, ADA
        )
    assert (found.reason, found.flag_metadata["decision"]) == (Reason.DEFAULT, "")
    assert found.flag_metadata["fallback_reason"] == "client_unavailable"
