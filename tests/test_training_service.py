"""TrainingService over a real channel, with real trainer processes."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import tuning_pb2
from recparams.v1 import types_pb2 as types
from recparams_rl.state import Context
from recparams_server.app import App
from recparams_server.jobs.forked import Template
from recparams_server.settings import Settings
from recparams_server.store.models import load_table
from tests.faults import IN_SPACE, SPACE
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    ROOT,
    Client,
    failure_of,
    in_process,
    logged,
    record,
    request,
    train,
)

LIKE, DISLIKE, SKIP = types.REACTION_LIKE, types.REACTION_DISLIKE, types.REACTION_SKIP
SEED_STATE = SPACE.index((75, 60, 40, 80, 30), Context("music", "calm", "evening"))


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **IN_SPACE, gates="report")


async def record_week(client: Client, users: int = 3, each: int = 6) -> int:
    """Each person likes low-focused-familiar and dislikes high-diverse-exploratory, days apart."""
    now = datetime.now(UTC)
    interactions = [
        logged(
            f"{user}-{n}",
            f"user{user}",
            LIKE if n % 2 else DISLIKE,
            action=(1, 1, 1) if n % 2 else (3, 3, 3),
            occurred_at=now - timedelta(days=5, hours=-n),
        )
        for user in range(users)
        for n in range(each)
    ]
    await record(client, *interactions)
    return len(interactions)


async def test_a_run_learns_and_is_served(client: Client, db: asyncpg.Connection) -> None:
    count = await record_week(client)
    run = await train(client)
    assert run.status == tpb.TRAINING_RUN_STATUS_COMPLETED, run.error
    assert (run.stage, run.progress) == ("done", 1.0)
    assert (run.users_trained, run.interactions_trained) == (3, count)
    assert run.average_reward == 0.0
    assert run.statistics.total_states == 1
    assert run.statistics.total_state_actions == 2
    assert run.statistics.total_updates == count
    assert run.statistics.coverage == pytest.approx(1 / SPACE.n_states)
    assert run.hyperparameters.settling_seconds == 1800
    assert set(run.stage_seconds) == {
        "starting",
        "reading",
        "preparing",
        "updating",
        "evaluating",
        "folding_in",
        "smoothing",
    }

    table = await load_table(db, run.model_version)
    liked = disliked = np.float32(0)
    for _ in range(count // 2):
        liked += np.float32(0.1) * (np.float32(1) - liked)
        disliked += np.float32(0.1) * (np.float32(-1) - disliked)
    assert table.q[SEED_STATE, 0] == liked
    assert table.q[SEED_STATE, 26] == disliked
    assert table.visits.sum() == count

    answer = await client.recommendation.GetRecommendationParams(request())
    while answer.model_version == 0:
        answer = await client.recommendation.GetRecommendationParams(request())
    assert answer.model_version == run.model_version
    assert answer.source == pb.DECISION_SOURCE_LEARNED
    assert answer.policy_arm == pb.POLICY_ARM_RL
    assert answer.fallback_reason == pb.FALLBACK_REASON_UNSPECIFIED
    assert answer.action == types.Action(energy=1, diversity=1, novelty=1)


async def test_interactions_are_trained_once(client: Client, db: asyncpg.Connection) -> None:
    count = await record_week(client)
    first = await train(client)
    second = await train(client)
    assert second.status == tpb.TRAINING_RUN_STATUS_COMPLETED
    assert (second.interactions_trained, second.model_version) == (0, 0)
    await record(client, *(logged(f"later{n}", "user0", SKIP) for n in range(5)))
    third = await train(client, hyperparameters=tpb.Hyperparameters(settling_seconds=0))
    assert third.interactions_trained == 5
    assert third.parent_version == first.model_version
    assert third.statistics.total_updates == count + 5
    rebuilt = await train(
        client,
        mode=tpb.TRAINING_MODE_REBUILD,
        hyperparameters=tpb.Hyperparameters(settling_seconds=0),
    )
    assert (rebuilt.parent_version, rebuilt.interactions_trained) == (0, count + 5)
    one, other = [
        await load_table(db, version) for version in (third.model_version, rebuilt.model_version)
    ]
    assert np.array_equal(one.q, other.q)
    assert np.array_equal(one.visits, other.visits)


async def test_few_interactions_wait(client: Client, db: asyncpg.Connection) -> None:
    await record(client, *(logged(f"a{n}", "few", LIKE) for n in range(4)))
    settled = tpb.Hyperparameters(settling_seconds=0)
    run = await train(client, hyperparameters=settled)
    assert (run.interactions_trained, run.interactions_waiting) == (0, 4)
    await record(client, logged("a4", "few", LIKE))
    run = await train(client, hyperparameters=settled)
    assert (run.interactions_trained, run.interactions_waiting) == (5, 0)
    run = await train(client, min_interactions_per_user=1, hyperparameters=settled)
    assert run.interactions_trained == 0


async def test_recent_interactions_settle_first(client: Client) -> None:
    now = datetime.now(UTC)
    await record(
        client,
        *(logged(f"old{n}", "ada", LIKE, occurred_at=now - timedelta(hours=2)) for n in range(5)),
        *(logged(f"new{n}", "ada", LIKE, occurred_at=now) for n in range(5)),
    )
    run = await train(client)
    assert (run.interactions_trained, run.interactions_waiting) == (5, 5)


async def test_sessions_chain_through_the_discount(client: Client, db: asyncpg.Connection) -> None:
    start = datetime.now(UTC) - timedelta(hours=5)
    minutes = (0, 29, 60)
    await record(
        client,
        *(
            logged(f"s{n}", "ada", LIKE, occurred_at=start + timedelta(minutes=minute))
            for n, minute in enumerate(minutes)
        ),
    )
    run = await train(
        client,
        min_interactions_per_user=1,
        hyperparameters=tpb.Hyperparameters(learning_rate=0.5, discount_factor=0.5),
    )
    # 0 -> 29 chain, but nothing is known of the state yet; 29 -> 60 is past the gap.
    half, first = np.float32(0.5), np.float32(0.5)
    second = first + half * (np.float32(1) - first)
    third = second + half * (np.float32(1) - second)
    table = await load_table(db, run.model_version)
    assert table.q[SEED_STATE, 0] == third

    chained = await train(
        client,
        min_interactions_per_user=1,
        mode=tpb.TRAINING_MODE_REBUILD,
        hyperparameters=tpb.Hyperparameters(
            learning_rate=0.5, discount_factor=0.5, session_gap_seconds=2400, settling_seconds=0
        ),
    )
    q = np.float32(0)
    q += half * (np.float32(1) - q)
    q += half * ((np.float32(1) + half * q) - q)
    q += half * (np.float32(1) - q)
    table = await load_table(db, chained.model_version)
    assert table.q[SEED_STATE, 0] == q


async def test_the_window(client: Client) -> None:
    now = datetime.now(UTC)
    for days in (1, 9, 20):
        await record(
            client,
            *(
                logged(f"{days}-{n}", f"u{days}", LIKE, occurred_at=now - timedelta(days=days))
                for n in range(5)
            ),
        )
    as_of = {"seconds": int((now - timedelta(days=8)).timestamp())}
    earlier = await train(client, as_of=as_of, days_back=3)
    assert earlier.interactions_trained == 5
    assert earlier.window_end.seconds == as_of["seconds"]
    rebuilt = await train(client, mode=tpb.TRAINING_MODE_REBUILD, days_back=30)
    assert rebuilt.interactions_trained == 15


async def test_a_missed_week_is_made_up_for(client: Client) -> None:
    now = datetime.now(UTC)
    weeks_ago = {"seconds": int((now - timedelta(days=21)).timestamp())}
    await train(client, as_of=weeks_ago)
    await record(
        client,
        *(logged(f"m{n}", "ada", LIKE, occurred_at=now - timedelta(days=15)) for n in range(5)),
    )
    run = await train(client)
    assert run.interactions_trained == 5
    assert not run.HasField("window_start")


async def test_a_request_id_starts_one_run(client: Client) -> None:
    await record_week(client)
    first = await train(client, request_id="weekly-1")
    again = await train(client, request_id="weekly-1")
    assert again == first
    listed = await client.training.ListTrainingRuns(tpb.ListTrainingRunsRequest(), metadata=ADMIN)
    assert [run.run_id for run in listed.runs] == [first.run_id]


async def test_one_run_at_a_time(client: Client, db: asyncpg.Connection) -> None:
    await record_week(client)
    # The run waits for this lock when it reads where it may read up to.
    await db.execute("SELECT pg_advisory_lock_shared(7270001)")
    started = await client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
    failure = await failure_of(
        client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
    )
    assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
    assert failure.reason == "TRAINING_ALREADY_RUNNING"
    assert failure.metadata == {"run_id": str(started.run.run_id)}

    cancel = tpb.CancelTrainingRunRequest(run_id=started.run.run_id)
    await client.training.CancelTrainingRun(cancel, metadata=ADMIN)
    watching = tpb.WatchTrainingRunRequest(run_id=started.run.run_id)
    async for update in client.training.WatchTrainingRun(watching, metadata=ADMIN):
        last = update.run
    assert last.status == tpb.TRAINING_RUN_STATUS_CANCELLED
    failure = await failure_of(client.training.CancelTrainingRun(cancel, metadata=ADMIN))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "RUN_ENDED")
    await db.execute("SELECT pg_advisory_unlock_all()")
    assert await db.fetchval("SELECT count(*) FROM model_versions") == 0
    assert (await train(client)).status == tpb.TRAINING_RUN_STATUS_COMPLETED


async def test_runs_are_listed_in_pages(client: Client) -> None:
    ids = [(await train(client)).run_id for _ in range(3)]
    first = await client.training.ListTrainingRuns(
        tpb.ListTrainingRunsRequest(page_size=2), metadata=ADMIN
    )
    assert [run.run_id for run in first.runs] == ids[:0:-1]
    second = await client.training.ListTrainingRuns(
        tpb.ListTrainingRunsRequest(page_size=2, page_token=first.next_page_token), metadata=ADMIN
    )
    assert [run.run_id for run in second.runs] == ids[:1]
    assert second.next_page_token == ""
    got = await client.training.GetTrainingRun(
        tpb.GetTrainingRunRequest(run_id=ids[0]), metadata=ADMIN
    )
    assert got.run == second.runs[0]


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"days_back": 0}, {"days_back"}),
        ({"days_back": 3651}, {"days_back"}),
        ({"min_interactions_per_user": 0}, {"min_interactions_per_user"}),
        ({"mode": 9}, {"mode"}),
        ({"request_id": "x" * 65}, {"request_id"}),
        ({"as_of": {"seconds": 4102444800}}, {"as_of"}),
        ({"as_of": {"seconds": -5}}, {"as_of"}),
        *(
            ({"hyperparameters": {name: value}}, {f"hyperparameters.{name}"})
            for name, value in (
                ("learning_rate", 0.0),
                ("learning_rate", float("nan")),
                ("discount_factor", 1.0),
                ("exploration_rate", 1.5),
                ("exploration_decay", 0.0),
                ("min_exploration_rate", 0.9),
                ("session_gap_seconds", 0.0),
                ("session_gap_seconds", float("inf")),
                ("settling_seconds", -1.0),
            )
        ),
    ],
)
async def test_bad_training_requests(
    client: Client, db: asyncpg.Connection, fields: dict[str, object], violations: set[str]
) -> None:
    failure = await failure_of(
        client.training.TriggerTraining(tpb.TriggerTrainingRequest(**fields), metadata=ADMIN)
    )
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert set(failure.violations) == violations
    assert await db.fetchval("SELECT count(*) FROM system_tasks") == 0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("GetTrainingRun", tpb.GetTrainingRunRequest(run_id=99)),
        ("CancelTrainingRun", tpb.CancelTrainingRunRequest(run_id=99)),
    ],
)
async def test_there_is_no_such_run(client: Client, method: str, message: object) -> None:
    failure = await failure_of(getattr(client.training, method)(message, metadata=ADMIN))
    assert failure.code == grpc.StatusCode.NOT_FOUND
    stream = client.training.WatchTrainingRun(
        tpb.WatchTrainingRunRequest(run_id=99), metadata=ADMIN
    )
    assert (await failure_of(stream.read())).code == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("token", ["x", "-1", "9" * 30, "²"])
async def test_bad_pages(client: Client, token: str) -> None:
    for call, message in (
        (client.training.ListTrainingRuns, tpb.ListTrainingRunsRequest(page_token=token)),
        (client.models.ListModels, mpb.ListModelsRequest(page_token=token)),
    ):
        failure = await failure_of(call(message, metadata=ADMIN))
        assert set(failure.violations) == {"page_token"}
    for size in (-1, 101):
        message = tpb.ListTrainingRunsRequest(page_size=size)
        failure = await failure_of(client.training.ListTrainingRuns(message, metadata=ADMIN))
        assert set(failure.violations) == {"page_size"}


ADMIN_CALLS = [
    ("training", "TriggerTraining", tpb.TriggerTrainingRequest()),
    ("training", "GetTrainingRun", tpb.GetTrainingRunRequest(run_id=1)),
    ("training", "ListTrainingRuns", tpb.ListTrainingRunsRequest()),
    ("training", "WatchTrainingRun", tpb.WatchTrainingRunRequest(run_id=1)),
    ("training", "CancelTrainingRun", tpb.CancelTrainingRunRequest(run_id=1)),
    ("training", "Evaluate", tpb.EvaluateRequest()),
    ("training", "Tune", tuning_pb2.TuneRequest()),
    ("models", "ListModels", mpb.ListModelsRequest()),
    ("models", "GetModel", mpb.GetModelRequest()),
    ("models", "DiffModels", mpb.DiffModelsRequest(version=0, other_version=1)),
    ("models", "DeleteModels", mpb.DeleteModelsRequest(keep_newest=1)),
    ("models", "ActivateModel", mpb.ActivateModelRequest(version=0)),
    ("models", "RollbackModel", mpb.RollbackModelRequest()),
    ("models", "ExportModel", mpb.ExportModelRequest()),
    ("models", "DiffModels", mpb.DiffModelsRequest(version=0, other_version=0)),
    ("models", "DeleteModels", mpb.DeleteModelsRequest(versions=[1])),
    ("models", "ImportModel", [mpb.ImportModelRequest(chunk=b'{"q_table": {}}')]),
]


@pytest.mark.parametrize(("service", "method", "message"), ADMIN_CALLS)
async def test_admin_calls_need_the_key(
    client: Client, db: asyncpg.Connection, service: str, method: str, message: object
) -> None:
    call = getattr(getattr(client, service), method)
    for metadata, code in (
        ((), grpc.StatusCode.UNAUTHENTICATED),
        ((("x-admin-key", "wrong"),), grpc.StatusCode.PERMISSION_DENIED),
        ((("x-admin-key", ADMIN_KEY + "x"),), grpc.StatusCode.PERMISSION_DENIED),
    ):
        answer = call(message, metadata=metadata)
        failure = await failure_of(answer.read() if hasattr(answer, "read") else answer)
        assert failure.code == code
    assert await db.fetchval("SELECT count(*) FROM system_tasks") == 0
    assert await db.fetchval("SELECT count(*) FROM model_versions") == 0


async def test_every_admin_rpc_is_covered() -> None:
    methods = {
        method.name
        for descriptor in (tpb.DESCRIPTOR, mpb.DESCRIPTOR)
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }
    assert {method for _, method, _ in ADMIN_CALLS} == methods


async def test_evaluate_reports_what_was_logged(client: Client) -> None:
    now = datetime.now(UTC)
    token = (await client.recommendation.GetRecommendationParams(request())).decision_token
    await record(
        client,
        logged("a", "ada", LIKE, types.REACTION_SHARE),
        logged("b", "bob", SKIP, completion_rate=0.2),
        logged("c", "bob", types.REACTION_IMPRESSION),
        logged("d", "bob", LIKE, mood_change=-1.0),
        logged("old", "cat", DISLIKE, occurred_at=now - timedelta(days=4)),
        pb.Interaction(interaction_id="e", user_id="ada", decision_token=token, reactions=[LIKE]),
    )
    answer = await client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
    assert (answer.interactions, answer.users) == (5, 2)
    expected = (1.8 + (-0.3 + 0.1) + 0.0 + 0.5 + 1.0) / 5
    assert answer.average_reward == pytest.approx(expected, abs=1e-6)
    assert answer.like_rate == pytest.approx(3 / 5)
    assert dict(answer.reaction_counts) == {
        "like": 3,
        "dislike": 0,
        "complete": 0,
        "skip": 1,
        "share": 1,
        "impression": 1,
    }
    assert answer.unknown_propensity == 4
    length = answer.period_end.ToDatetime() - answer.period_start.ToDatetime()
    assert length == timedelta(days=3)
    earlier = tpb.EvaluateRequest(test_days=2)
    earlier.as_of.FromDatetime(now - timedelta(days=3))
    answer = await client.training.Evaluate(earlier, metadata=ADMIN)
    assert (answer.interactions, answer.average_reward) == (1, -1.0)
    failure = await failure_of(
        client.training.Evaluate(tpb.EvaluateRequest(test_days=0), metadata=ADMIN)
    )
    assert set(failure.violations) == {"test_days"}


async def test_the_seeds_monitoring_queries(client: Client, db: asyncpg.Connection) -> None:
    await record_week(client)
    run = await train(client)
    seed = (ROOT / "docs" / "monitoring.sql").read_text()
    latest, progress, growth = [query for query in seed.split(";") if query.strip()]
    row = (await db.fetch(latest))[0]
    assert (row["users_processed"], row["records_processed"]) == (3, 18)
    assert float(row["avg_reward"]) == run.average_reward
    assert json.loads(row["agent_stats"])["total_states"] == 1
    days = await db.fetch(progress)
    assert [(d["training_date"], d["avg_reward"], d["total_users"]) for d in days] == [
        (datetime.now(UTC).date(), 0.0, 3)
    ]
    stats = (await db.fetch(growth))[0]
    assert float(stats["max_q_value"]) == pytest.approx(run.statistics.max_q_value)
    assert int(stats["total_state_actions"]) == 2


class TestOtherSpaces:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: object) -> Settings:
        return in_process(
            database_url, tmp_path, bins=3, gates="report", moods="calm,neutral", reward_like=2.0
        )

    async def test_everything_works_in_another_space(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        await record(client, *(logged(f"i{n}", "ada", LIKE) for n in range(5)))
        run = await train(client)
        assert run.statistics.coverage == pytest.approx(1 / (3**5 * 3 * 2 * 4))
        assert run.average_reward == 2.0
        bad = request(mood=types.MOOD_HAPPY)
        failure = await failure_of(client.recommendation.GetRecommendationParams(bad))
        assert set(failure.violations) == {"mood"}
        model = await client.models.GetModel(mpb.GetModelRequest(), metadata=ADMIN)
        assert (model.model.bins, list(model.model.moods)) == (3, ["calm", "neutral"])

    async def test_a_changed_space_asks_for_a_rebuild(
        self, client: Client, settings: Settings, app: App, template: Template
    ) -> None:
        await record(client, *(logged(f"i{n}", "ada", LIKE) for n in range(5)))
        run = await train(client)
        await app.stop()
        other = App(settings.model_copy(update={"bins": 5}), template=template)
        await other.start()
        try:
            from tests.support import connect, wait_serving

            async with connect(f"127.0.0.1:{other.port}") as second:
                await wait_serving(second)
                answer = await second.recommendation.GetRecommendationParams(request())
                assert answer.fallback_reason == pb.FALLBACK_REASON_NO_MODEL
                failure = await failure_of(
                    second.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
                )
                assert failure.reason == "MODEL_INCOMPATIBLE"
                activate = mpb.ActivateModelRequest(version=run.model_version)
                failure = await failure_of(second.models.ActivateModel(activate, metadata=ADMIN))
                assert failure.reason == "MODEL_INCOMPATIBLE"
                rebuilt = await train(second, mode=tpb.TRAINING_MODE_REBUILD)
                assert rebuilt.interactions_trained == 5
        finally:
            await other.stop()
