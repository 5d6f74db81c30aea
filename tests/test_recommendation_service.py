"""RecommendationService over a real channel and a real database."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_server.app import App
from recparams_server.settings import Settings
from tests.support import SEED_PERSONALITY, Client, failure_of, in_process, logged, record, request


async def get(client: Client, **fields: object) -> pb.GetRecommendationParamsResponse:
    return await client.recommendation.GetRecommendationParams(request(**fields))


async def put_profile(client: Client, user_id: str, profile: types.PersonalityProfile) -> None:
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(
            profiles=[pb.UserPersonalityProfile(user_id=user_id, personality=profile)]
        )
    )


async def test_many_violations_are_still_one_clear_error(client: Client) -> None:
    """All of them together would not fit into the metadata of an answer."""
    bad = [pb.Interaction(interaction_id="i" * 65, user_id="") for _ in range(1000)]
    failure = await failure_of(record(client, *bad))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "interactions[0].interaction_id" in failure.violations
    assert "more)" in failure.message


async def test_the_seeds_worked_example(client: Client) -> None:
    answer = await get(client)
    assert answer.params == types.RecommendationParams(
        min_energy=0.0,
        max_energy=0.4,
        valence=0.3,
        genre_count=5,
        exploration_rate=0.5,
        popularity_min=0,
        popularity_max=50,
    )
    assert answer.action == types.Action(
        energy=types.ENERGY_LOW,
        diversity=types.DIVERSITY_DIVERSE,
        novelty=types.NOVELTY_EXPLORATORY,
    )
    assert answer.model_version == 0
    assert answer.policy_arm == pb.POLICY_ARM_RULE_BASED
    assert answer.source == pb.DECISION_SOURCE_RULE_BASED
    assert answer.fallback_reason == pb.FALLBACK_REASON_NO_MODEL
    assert answer.propensity == 1.0
    assert 0 < len(answer.decision_token) < 120


async def test_a_stored_profile_is_used_and_replaced(client: Client) -> None:
    open_person = SEED_PERSONALITY
    closed_person = types.PersonalityProfile(
        openness=10, conscientiousness=90, extraversion=40, agreeableness=80, neuroticism=90
    )
    for profile in (open_person, closed_person, open_person):
        await put_profile(client, "ada", profile)
        stored = await client.recommendation.GetRecommendationParams(request(personality=None))
        inline = await client.recommendation.GetRecommendationParams(request(personality=profile))
        assert stored.params == inline.params
        assert stored.fallback_reason == pb.FALLBACK_REASON_NO_MODEL


async def test_nobody_knows_this_person(client: Client) -> None:
    answer = await get(client, personality=None)
    assert answer.fallback_reason == pb.FALLBACK_REASON_NO_PROFILE
    assert answer.source == pb.DECISION_SOURCE_RULE_BASED
    neutral = types.PersonalityProfile(
        openness=50, conscientiousness=50, extraversion=50, agreeableness=50, neuroticism=50
    )
    assert answer.params == (await get(client, personality=neutral)).params


@pytest.mark.parametrize(
    ("hour", "offset", "same_as"),
    [
        (5, 0, types.TIME_OF_DAY_MORNING),
        (11, 59, types.TIME_OF_DAY_AFTERNOON),
        (12, 0, types.TIME_OF_DAY_AFTERNOON),
        (17, 0, types.TIME_OF_DAY_EVENING),
        (22, 0, types.TIME_OF_DAY_NIGHT),
        (4, 0, types.TIME_OF_DAY_NIGHT),
        (23, 600, types.TIME_OF_DAY_MORNING),
        (1, -300, types.TIME_OF_DAY_EVENING),
    ],
)
async def test_time_of_day_is_derived(
    client: Client, db: asyncpg.Connection, hour: int, offset: int, same_as: int
) -> None:
    derived = request(time_of_day=0, utc_offset_minutes=offset)
    derived.timestamp.FromDatetime(datetime(2026, 3, 1, hour, 1))
    answer = await client.recommendation.GetRecommendationParams(derived)
    await record(
        client,
        pb.Interaction(
            interaction_id="i",
            user_id="ada",
            decision_token=answer.decision_token,
            reactions=[types.REACTION_LIKE],
        ),
    )
    assert await db.fetchval("SELECT time_of_day FROM interactions") == same_as


BAD_PROFILE = types.PersonalityProfile(
    openness=101, conscientiousness=math.nan, extraversion=-1, agreeableness=math.inf
)


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"user_id": ""}, {"user_id"}),
        ({"user_id": "x" * 129}, {"user_id"}),
        ({"user_id": "a\x00b"}, {"user_id"}),
        ({"content_type": 0}, {"content_type"}),
        ({"content_type": 9}, {"content_type"}),
        ({"mood": 99}, {"mood"}),
        ({"mood": -1}, {"mood"}),
        ({"time_of_day": 5}, {"time_of_day"}),
        ({"time_of_day": 0}, {"time_of_day"}),
        ({"time_of_day": 0, "utc_offset_minutes": 841}, {"utc_offset_minutes"}),
        (
            {"personality": BAD_PROFILE, "content_type": 0},
            {
                "personality.openness",
                "personality.conscientiousness",
                "personality.extraversion",
                "personality.agreeableness",
                "personality.neuroticism",
                "content_type",
            },
        ),
    ],
)
async def test_bad_requests_name_their_fields(
    client: Client, fields: dict[str, object], violations: set[str]
) -> None:
    failure = await failure_of(client.recommendation.GetRecommendationParams(request(**fields)))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == violations
    batch = pb.BatchGetRecommendationParamsRequest(requests=[request(), request(**fields)])
    failure = await failure_of(client.recommendation.BatchGetRecommendationParams(batch))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {f"requests[1].{name}" for name in violations}


async def test_a_timestamp_out_of_range(client: Client) -> None:
    bad = request(time_of_day=0)
    bad.timestamp.seconds = -1
    failure = await failure_of(client.recommendation.GetRecommendationParams(bad))
    assert set(failure.violations) == {"timestamp"}


async def test_an_unspecified_mood_is_neutral(client: Client) -> None:
    assert (await get(client, mood=0)).params == (await get(client, mood=1)).params


async def test_batch_answers_in_order(client: Client) -> None:
    await put_profile(client, "known", SEED_PERSONALITY)
    moods = [mood for mood in types.Mood.values() if mood]
    requests = [request(f"u{mood}", mood=mood) for mood in moods]
    requests += [request("known", personality=None), request("unknown", personality=None)]
    batch = await client.recommendation.BatchGetRecommendationParams(
        pb.BatchGetRecommendationParamsRequest(requests=requests)
    )
    single = [await client.recommendation.GetRecommendationParams(one) for one in requests]
    assert [a.params for a in batch.responses] == [a.params for a in single]
    assert [a.fallback_reason for a in batch.responses] == [a.fallback_reason for a in single]
    assert batch.responses[-1].fallback_reason == pb.FALLBACK_REASON_NO_PROFILE


@pytest.mark.parametrize("count", [0, 257])
async def test_batch_size_is_limited(client: Client, count: int) -> None:
    batch = pb.BatchGetRecommendationParamsRequest(requests=[request()] * count)
    failure = await failure_of(client.recommendation.BatchGetRecommendationParams(batch))
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {"requests"}


async def test_reactions_come_back_with_their_token(client: Client, db: asyncpg.Connection) -> None:
    answer = await get(client)
    reaction = pb.Interaction(
        interaction_id="i1",
        user_id="ada",
        decision_token=answer.decision_token,
        reactions=[types.REACTION_COMPLETE, types.REACTION_SHARE],
        completion_rate=0.75,
        mood_change=-0.25,
    )
    first = await record(client, reaction)
    assert (first.recorded, first.duplicates) == (1, 0)
    again = await record(client, reaction)
    assert (again.recorded, again.duplicates) == (0, 1)

    row = await db.fetchrow("SELECT * FROM interactions_named")
    assert row["user_id"] == "ada"
    assert (row["content_type"], row["mood"], row["time_of_day"]) == ("music", "calm", "evening")
    assert (row["energy"], row["diversity"], row["novelty"]) == ("low", "diverse", "exploratory")
    assert (row["completed"], row["shared"], row["liked"]) == (True, True, False)
    assert (row["completion_rate"], row["mood_change"]) == (0.75, -0.25)
    assert (row["openness"], row["neuroticism"]) == (75, 30)
    assert (row["propensity"], row["model_version"]) == (1.0, 0)
    assert abs(row["occurred_at"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert await db.fetchval("SELECT count(*) FROM interactions") == 1


async def test_the_same_id_twice_in_one_message(client: Client, db: asyncpg.Connection) -> None:
    answer = await record(
        client,
        logged("same", "ada", types.REACTION_LIKE),
        logged("same", "ada", types.REACTION_SKIP),
    )
    assert (answer.recorded, answer.duplicates) == (1, 1)
    assert await db.fetchval("SELECT reactions FROM interactions") == 1


async def test_tokens_cannot_be_forged_or_passed_on(client: Client, app: App) -> None:
    token = (await get(client)).decision_token
    forged = [token[:-1] + bytes([token[-1] ^ 1]), b"", b"x" * len(token), token + b"\0"]
    forged += [token[:i] + bytes([token[i] ^ 1]) + token[i + 1 :] for i in range(0, len(token), 7)]
    for number, bad in enumerate(forged):
        reaction = pb.Interaction(
            interaction_id=f"f{number}",
            user_id="ada",
            decision_token=bad,
            reactions=[types.REACTION_LIKE],
        )
        failure = await failure_of(record(client, reaction))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert set(failure.violations) == {"interactions[0].decision_token"}
    reaction.user_id, reaction.decision_token = "eve", token
    assert set((await failure_of(record(client, reaction))).violations) == {
        "interactions[0].decision_token"
    }


def _interaction(**changes: object) -> pb.Interaction:
    message = logged("i", "ada", types.REACTION_LIKE)
    for name, value in changes.items():
        if value is None:
            message.ClearField(name)
        elif isinstance(value, list):
            message.ClearField(name)
            getattr(message, name).extend(value)
        elif isinstance(value, datetime):
            getattr(message, name).FromDatetime(value)
        elif isinstance(value, pb.LoggedDecision):
            message.logged_decision.MergeFrom(value)
        else:
            setattr(message, name, value)
    return message


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"interaction_id": ""}, "interaction_id"),
        ({"interaction_id": "x" * 65}, "interaction_id"),
        ({"user_id": ""}, "user_id"),
        ({"reactions": []}, "reactions"),
        ({"reactions": [0]}, "reactions[0]"),
        ({"reactions": [1, 77]}, "reactions[1]"),
        ({"reactions": [1, 2]}, "reactions"),
        ({"reactions": [3, 4]}, "reactions"),
        ({"completion_rate": 1.5}, "completion_rate"),
        ({"completion_rate": math.nan}, "completion_rate"),
        ({"mood_change": -1.5}, "mood_change"),
        ({"occurred_at": NOW + timedelta(hours=1)}, "occurred_at"),
        ({"occurred_at": NOW - timedelta(weeks=27)}, "occurred_at"),
        ({"logged_decision": None}, "decision_token"),
        ({"logged_decision": pb.LoggedDecision(mood=50)}, "logged_decision.mood"),
        (
            {"logged_decision": pb.LoggedDecision(params=types.RecommendationParams(valence=0.3))},
            "logged_decision.params",
        ),
        (
            {
                "logged_decision": pb.LoggedDecision(
                    personality=types.PersonalityProfile(openness=200)
                )
            },
            "logged_decision.personality.openness",
        ),
    ],
)
async def test_bad_interactions_change_nothing(
    client: Client, db: asyncpg.Connection, changes: dict[str, object], path: str
) -> None:
    failure = await failure_of(
        record(client, logged("good", "ada", types.REACTION_LIKE), _interaction(**changes))
    )
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == {f"interactions[1].{path}"}
    assert await db.fetchval("SELECT count(*) FROM interactions") == 0
    assert await db.fetchval("SELECT count(*) FROM interaction_keys") == 0


async def test_an_action_is_inferred_from_parameters(
    client: Client, db: asyncpg.Connection
) -> None:
    params = types.RecommendationParams(
        min_energy=0.55, max_energy=0.95, genre_count=4, popularity_min=60
    )
    await record(client, _interaction(logged_decision=pb.LoggedDecision(params=params)))
    row = await db.fetchrow("SELECT * FROM interactions_named")
    assert (row["energy"], row["novelty"]) == ("high", "familiar")
    assert row["diversity"] in ("balanced", "diverse")
    assert row["propensity"] is None


async def test_a_profile_reaches_the_interactions_that_waited_for_it(
    client: Client, db: asyncpg.Connection
) -> None:
    waiting = logged("i", "ada", types.REACTION_LIKE)
    waiting.logged_decision.ClearField("personality")
    await record(client, waiting)
    assert await db.fetchval("SELECT openness FROM interactions") is None
    await put_profile(client, "ada", SEED_PERSONALITY)
    assert await db.fetchval("SELECT openness FROM interactions") == 75
    later = logged("j", "ada", types.REACTION_LIKE)
    later.logged_decision.ClearField("personality")
    await record(client, later)
    assert await db.fetchval("SELECT count(*) FROM interactions WHERE openness = 75") == 2


@pytest.mark.parametrize("count", [0, 1001])
async def test_record_size_is_limited(client: Client, count: int) -> None:
    interactions = [logged(f"i{n}", "ada") for n in range(count)]
    failure = await failure_of(
        client.recommendation.RecordInteractions(
            pb.RecordInteractionsRequest(interactions=interactions)
        )
    )
    assert set(failure.violations) == {"interactions"}


async def test_bad_profiles_change_nothing(client: Client, db: asyncpg.Connection) -> None:
    def one(user_id: str, profile: types.PersonalityProfile | None) -> pb.UserPersonalityProfile:
        return pb.UserPersonalityProfile(user_id=user_id, personality=profile)

    failure = await failure_of(
        client.recommendation.PutPersonalityProfiles(
            pb.PutPersonalityProfilesRequest(
                profiles=[
                    one("a", SEED_PERSONALITY),
                    one("a", SEED_PERSONALITY),
                    one("", SEED_PERSONALITY),
                    one("b", BAD_PROFILE),
                ]
            )
        )
    )
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert {
        "profiles[1].user_id",
        "profiles[2].user_id",
        "profiles[3].personality.openness",
    } <= set(failure.violations)
    assert await db.fetchval("SELECT count(*) FROM personality_profiles") == 0


class TestExploration:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: object) -> Settings:
        return in_process(database_url, tmp_path, exploration=0.5)

    async def test_propensities_are_those_of_the_draw(self, client: Client) -> None:
        batch = pb.BatchGetRecommendationParamsRequest(requests=[request()] * 250)
        answers = [
            answer
            for _ in range(12)
            for answer in (
                await client.recommendation.BatchGetRecommendationParams(batch)
            ).responses
        ]
        drawn = Counter(answer.action.SerializeToString() for answer in answers)
        chance = {a.action.SerializeToString(): a.propensity for a in answers}
        assert len(drawn) == 27
        assert math.isclose(sum(chance.values()), 1.0)
        for action, count in drawn.items():
            expected = len(answers) * chance[action]
            assert abs(count - expected) < 5 * math.sqrt(expected)
        explored = {a.source for a in answers if a.propensity < 0.5}
        assert explored == {pb.DECISION_SOURCE_EXPLORATION}
