"""Gates and off-policy evaluation through the real service, on people whose tastes are known."""

from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_rl.action import ACTIONS
from recparams_rl.objectives import LEVELS
from recparams_rl.rules import rule_based_action
from recparams_rl.state import Context
from recparams_server.contract.vocabulary import CONTENT_TYPE_NAMES, MOOD_NAMES, TIME_OF_DAY_NAMES
from recparams_server.settings import Settings
from tests.faults import SMALL, eventually
from tests.support import ADMIN, ROOT, Client, failure_of, in_process, logged, record, train
from tests.trust import DISLIKE, LIKE, decide, get_rollout, likes_high_energy, live, set_rollout

PEOPLE = [f"user-{n}" for n in range(400)]
TRAITS = (75.0, 60.0, 40.0, 80.0, 30.0)
MONITORING = ROOT / "docs/monitoring.sql"
CALM = {"mood": types.MOOD_CALM}
COMPLETED = tpb.TRAINING_RUN_STATUS_COMPLETED
ACTIVATED, STARTED, WAITING, REFUSED, STORED = (
    tpb.TRAINING_OUTCOME_ACTIVATED,
    tpb.TRAINING_OUTCOME_STARTED,
    tpb.TRAINING_OUTCOME_WAITING,
    tpb.TRAINING_OUTCOME_REFUSED,
    tpb.TRAINING_OUTCOME_STORED,
)
ACTIVE = epb.Policy(builtin=epb.BUILTIN_POLICY_ACTIVE)
RULES = epb.Policy(builtin=epb.BUILTIN_POLICY_RULE_BASED)
RANDOM = epb.Policy(builtin=epb.BUILTIN_POLICY_UNIFORM_RANDOM)


def enforcing(database_url: str, tmp_path: Path, **changes: Any) -> Settings:
    return in_process(
        database_url,
        tmp_path,
        **{
            **SMALL,
            "gates": "enforce",
            "exploration": 1.0,
            "watch_seconds": 3600,
            # Everybody's last interaction ends an episode, so that with a discount whichever action
            # was drawn least in the last round looks best.
            "discount_factor": 0.0,
            **changes,
        },
    )


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return enforcing(database_url, tmp_path, gate_average_reward=-1.0)


async def evaluate(client: Client, **fields: Any) -> tpb.EvaluateResponse:
    return await client.training.Evaluate(tpb.EvaluateRequest(**fields), metadata=ADMIN)


def estimates_of(policy: epb.PolicyEvaluation) -> dict[str, epb.Estimate]:
    return {one.estimator: one for one in policy.estimates}


def gates_of(run: tpb.TrainingRun) -> dict[str, epb.Gate]:
    return {gate.name: gate for gate in run.gates}


async def status_of(db: asyncpg.Connection, run: tpb.TrainingRun) -> tuple[str, str]:
    """Status and outcome of a run, as the database has them."""
    sql = "SELECT status, outcome FROM system_tasks WHERE id = $1"
    status, outcome = await db.fetchrow(sql, run.run_id)
    return status, outcome


class TestGates:
    async def test_a_better_version_passes_and_is_served(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        for _ in range(16):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        run = await train(client)
        assert (run.status, run.outcome) == (COMPLETED, ACTIVATED), gates_of(run)
        assert all(gate.passed for gate in run.gates)
        assert (
            run.outcome_reason == "served to everybody: shown to be better than the active version"
        )
        assert run.served_percent == 100
        assert (await get_rollout(client)).rollout.version == run.model_version
        held = run.holdout
        assert 0.4 * 6400 <= held.interactions <= 0.6 * 6400
        assert [p.name for p in held.policies] == ["candidate", "rule-based"]
        candidate, rules = (estimates_of(policy)["dr"] for policy in held.policies)
        # Calm people get low energy by the rules, and like high energy alone.
        assert rules.value == pytest.approx(-1.0, abs=0.15)
        assert candidate.value == pytest.approx(1.0, abs=0.15)
        improvement = gates_of(run)["improvement"]
        (difference,) = [d.difference for d in held.differences]
        assert difference.intervals[0].low > 1.5
        assert improvement.value == difference.intervals[0].high
        assert improvement.threshold == 0

    async def test_nothing_is_lost_by_holding_out(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        for _ in range(2):
            await live(client, PEOPLE, likes_high_energy)
        run = await train(client)
        assert run.holdout.interactions == 400
        assert run.interactions_trained == run.statistics.total_updates == 800
        assert (await train(client)).interactions_trained == 0

    async def test_too_few_interactions_are_refused(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        await live(client, PEOPLE, likes_high_energy, **CALM)
        run = await train(client)
        assert (run.status, run.outcome) == (COMPLETED, REFUSED)
        assert await status_of(db, run) == ("completed", "refused")
        gate = gates_of(run)["interactions"]
        assert (gate.passed, gate.value, gate.threshold) == (False, 400, 1000)
        assert "400 interactions" in gate.explanation
        assert run.served_percent == 0
        assert (await get_rollout(client)).rollout.version == 0
        stored = await db.fetchval(
            "SELECT metadata->'training'->'gates' FROM system_tasks WHERE id = $1", run.run_id
        )
        assert gate.explanation in stored
        assert gate.explanation in run.outcome_reason
        assert run.error == ""
        # It is a candidate: kept, and served when somebody says so.
        answer = await client.models.ActivateModel(
            mpb.ActivateModelRequest(version=run.model_version), metadata=ADMIN
        )
        assert answer.active_version == run.model_version

    async def test_a_refused_version_is_gone_on_from(self, client: Client) -> None:
        await live(client, PEOPLE, likes_high_energy, **CALM)
        first = await train(client)
        for _ in range(16):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        second = await train(client)
        assert (first.outcome, second.outcome) == (REFUSED, ACTIVATED), second
        assert second.parent_version == first.model_version
        assert second.interactions_trained == 6400
        assert second.statistics.total_updates == 6800

    async def test_a_version_that_is_shown_worse_is_refused(self, client: Client) -> None:
        for _ in range(16):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        good = await train(client)
        assert good.served_percent == 100

        async def is_served() -> bool:
            answers = await live(client, PEOPLE[:1], lambda _: [LIKE], **CALM)
            return bool(answers[0].model_version == good.model_version)

        await eventually(is_served)

        # Reactions are the wrong way round for a while, then right again: what is learned from the
        # first part fails on the second.
        def upside_down(answer: pb.GetRecommendationParamsResponse) -> list[Any]:
            return [DISLIKE] if likes_high_energy(answer) == [LIKE] else [LIKE]

        for _ in range(16):
            await live(client, PEOPLE, upside_down, **CALM)
        for _ in range(16):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        bad = await train(client)
        assert bad.outcome == REFUSED
        failed = [gate.name for gate in bad.gates if not gate.passed]
        assert failed == ["improvement"]
        assert gates_of(bad)["improvement"].value < -0.5
        assert (await get_rollout(client)).rollout.version == good.model_version

    async def test_what_cannot_be_told_is_not_refused(self, client: Client) -> None:
        """Of logs without propensities nothing can be said."""
        await record(
            client,
            *(logged(f"i{n}", f"u{n % 300}", LIKE, action=(3, 1, 1)) for n in range(1200)),
        )
        run = await train(client)
        assert run.outcome == ACTIVATED
        gate = gates_of(run)["improvement"]
        assert gate.passed
        assert not gate.HasField("value")
        assert "not known" in gate.explanation
        assert run.holdout.unknown_propensity == run.holdout.interactions

    async def test_a_corrupt_version_is_refused(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        await db.execute(
            """
            CREATE FUNCTION corrupt() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN NEW.policy_checksum = ''; RETURN NEW; END $$;
            CREATE TRIGGER corrupt BEFORE INSERT ON model_versions
                FOR EACH ROW EXECUTE FUNCTION corrupt()
            """
        )
        for _ in range(4):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        run = await train(client)
        assert (run.status, run.outcome) == (COMPLETED, REFUSED)
        assert "fails its checksum" in run.outcome_reason
        assert (await get_rollout(client)).rollout.version == 0

    async def test_a_rollout_by_hand_is_finished_first(self, client: Client) -> None:
        for _ in range(4):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        first = await train(client)
        await set_rollout(client, version=first.model_version, percent=50)
        for _ in range(4):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        second = await train(client)
        assert (second.status, second.outcome) == (COMPLETED, WAITING)
        assert f"version {first.model_version} is at 50 % of the people" in second.outcome_reason
        rollout = (await get_rollout(client)).rollout
        assert (rollout.version, rollout.percent) == (first.model_version, 50)

    async def test_the_specifications_queries_count_every_run(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        """The file has them verbatim."""
        runs = []
        for rounds in (1, 3, 3, 3):
            for _ in range(rounds):
                await live(client, PEOPLE, likes_high_energy, **CALM)
            runs.append(await train(client, activate=len(runs) < 3))
            if len(runs) == 2:
                await set_rollout(client, version=runs[1].model_version, percent=50)
        assert [run.outcome for run in runs] == [REFUSED, ACTIVATED, WAITING, STORED]
        newest, by_day, _ = MONITORING.read_text().split(";")[:3]
        rows = await db.fetch(newest)
        assert [row["records_processed"] for row in rows] == [1200, 1200, 1200, 400]
        assert all(row["avg_reward"] and row["agent_stats"] for row in rows)
        days = await db.fetch(by_day)
        assert sum(day["total_users"] for day in days) == sum(run.users_trained for run in runs)


class TestExploration:
    """Exploration that follows what was trained, whatever is served."""

    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return enforcing(database_url, tmp_path, exploration="schedule", exploration_decay=0.3)

    async def test_it_falls_where_a_version_is_refused(self, client: Client) -> None:
        async def propensities() -> set[float]:
            people = [f"somebody-{n}" for n in range(100)]
            return {answer.propensity for answer in await decide(client, people, **CALM)}

        def of(epsilon: float) -> Any:
            return pytest.approx(1 - epsilon + epsilon / 27, rel=1e-6)

        assert max(await propensities()) == of(0.3)
        for trained in (400, 800):
            await live(client, PEOPLE, likes_high_energy, **CALM)
            run = await train(client)
            assert run.outcome == REFUSED
            epsilon = run.statistics.exploration_rate
            assert epsilon == pytest.approx(0.3 * 0.3 ** (trained / 1000))

            async def explores_less(epsilon: float = epsilon) -> bool:
                return bool(max(await propensities()) == of(epsilon))

            await eventually(explores_less, 10)
        assert (await get_rollout(client)).rollout.version == 0


class TestStaged:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return enforcing(
            database_url,
            tmp_path,
            gate_average_reward=-1.0,
            rollout="staged",
            rollout_steps="first=5,all=100",
        )

    async def test_a_version_that_passes_begins_at_the_first_step(self, client: Client) -> None:
        for _ in range(16):
            await live(client, PEOPLE, likes_high_energy, **CALM)
        run = await train(client)
        assert (run.outcome, run.served_percent) == (STARTED, 5)
        rollout = (await get_rollout(client)).rollout
        assert (rollout.version, rollout.percent, rollout.baseline_version) == (
            run.model_version,
            5,
            0,
        )
        assert rollout.experiment_id
        assert (await set_rollout(client, step="next")).percent == 100


class TestEvaluate:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return enforcing(database_url, tmp_path, gates="report", exploration=0.5)

    async def test_estimates_against_the_truth(self, client: Client) -> None:
        for _ in range(5):
            await live(client, PEOPLE, likes_high_energy)
        run = await train(client, min_interactions_per_user=1000)
        assert run.model_version == 0
        answer = await evaluate(client, policies=[RULES, RANDOM], test_days=1)
        assert answer.interactions == answer.evaluated == 2000
        assert answer.users == 400
        rules, random = answer.policies
        # The rules give high energy in one of eight moods.
        high = np.mean(
            [
                rule_based_action(TRAITS, Context("music", mood, "evening")).energy == "high"
                for mood in MOOD_NAMES.values()
            ]
        )
        for policy, truth in ((rules, 2 * high - 1), (random, -1 / 3)):
            found = estimates_of(policy)
            assert list(found) == ["dm", "ipw", "snipw", "dr", "switch-dr"]
            for name, one in found.items():
                if name == "dm":
                    continue
                normal, bootstrap = one.intervals
                assert (normal.method, bootstrap.method) == ("normal", "bootstrap")
                assert normal.low - 0.05 <= truth <= normal.high + 0.05, (policy.name, name)
                assert bootstrap.low <= one.value <= bootstrap.high
                assert one.interactions == 2000
                assert 0 < one.effective_sample_size <= 2000
                assert one.mean_weight == pytest.approx(1, abs=0.15)
        assert estimates_of(rules)["ipw"].largest_weight == pytest.approx(
            1 / (0.5 / 27 + 0.5), rel=1e-3
        )
        (difference,) = answer.differences
        assert (difference.policy, difference.other) == ("rule-based", "random")
        assert difference.difference.value == pytest.approx(2 * high - 1 + 1 / 3, abs=0.15)

    async def test_the_rest_of_the_report(self, client: Client) -> None:
        for _ in range(2):
            await live(client, PEOPLE, likes_high_energy)
        answer = await evaluate(client, policies=[RULES, RANDOM])
        dimensions = {s.dimension for s in answer.policies[0].segments}
        assert {"content_type", "mood", "time_of_day", "openness", "neuroticism"} <= dimensions
        moods = [s for s in answer.policies[0].segments if s.dimension == "mood"]
        assert {s.value for s in moods} == set(MOOD_NAMES.values())
        assert sum(s.estimates[0].interactions for s in moods) == 800
        assert sum(c.interactions for c in answer.coverage) == 800
        assert {c.content_type for c in answer.coverage} == {CONTENT_TYPE_NAMES[1]}
        assert {c.time_of_day for c in answer.coverage} == {TIME_OF_DAY_NAMES[3]}
        assert sum(d.interactions for d in answer.daily) == 800
        assert {d.arm for d in answer.daily} == {"rule_based"}
        assert sum(answer.logged_action_shares) == pytest.approx(1)
        rules = answer.policies[0]
        diversity = sum(share * LEVELS[n, 0] for n, share in enumerate(rules.action_shares))
        objectives = {o.objective: o.estimate.value for o in rules.objectives}
        assert objectives["diversity"] == pytest.approx(diversity, abs=1e-5)
        shares = np.array(answer.logged_action_shares)
        assert answer.logged_objectives["novelty"] == pytest.approx(shares @ LEVELS[:, 1], abs=1e-5)
        assert answer.logged_objectives["engagement"] == pytest.approx(answer.average_reward)
        brief = await evaluate(client, policies=[RULES], overall_only=True)
        assert not brief.policies[0].segments

    async def test_what_a_version_was_trained_on_is_left_out(self, client: Client) -> None:
        await live(client, PEOPLE, likes_high_energy)
        run = await train(client)
        await live(client, PEOPLE[:250], likes_high_energy)
        version = epb.Policy(version=run.model_version)
        answer = await evaluate(client, policies=[version, RULES])
        assert (answer.interactions, answer.trained_excluded, answer.evaluated) == (650, 400, 250)
        assert answer.policies[0].trained_interactions == 400
        assert answer.policies[0].training_known
        assert answer.policies[1].trained_interactions == 0
        everything = await evaluate(client, policies=[version, RULES], include_trained=True)
        assert (everything.trained_excluded, everything.evaluated) == (0, 650)
        default = await evaluate(client)
        assert [p.name for p in default.policies] == [
            f"version {run.model_version} (active)",
            "rule-based",
            "random",
        ]

    async def test_nobody_knows_what_an_import_was_trained_on(self, client: Client) -> None:
        await live(client, PEOPLE, likes_high_energy)
        table = b"""{"(1, 1, 0, 1, 0, 'music', 'calm', 'evening')":
            {"('low', 'diverse', 'exploratory')": 1.5}}"""

        async def pieces() -> Any:
            yield mpb.ImportModelRequest(chunk=table)

        imported = await client.models.ImportModel(pieces(), metadata=ADMIN)
        assert not imported.model.main_line
        answer = await evaluate(client, policies=[epb.Policy(version=imported.model.version)])
        assert not answer.policies[0].training_known
        assert answer.evaluated == 400

    async def test_logs_without_exploration_say_nothing_of_other_policies(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        await live(client, PEOPLE, likes_high_energy)
        # As if the same actions had been the only ones possible.
        await db.execute("UPDATE interactions SET propensity = 1 WHERE action = 8")
        await db.execute("DELETE FROM interactions WHERE action <> 8")
        answer = await evaluate(client, policies=[RANDOM, RULES])
        random, rules = answer.policies
        for one in random.estimates:
            assert not one.HasField("value")
            assert not one.intervals
            assert "of what this policy would do was never tried" in one.reason
        assert not random.pareto_optimal
        # The rules did what is in the log.
        assert estimates_of(rules)["dr"].value == pytest.approx(-1)
        assert answer.differences[0].difference.reason

    async def test_nothing_was_logged(self, client: Client) -> None:
        answer = await evaluate(client)
        assert answer.interactions == answer.evaluated == 0
        assert not answer.coverage
        assert all(one.reason for policy in answer.policies for one in policy.estimates)

    async def test_unknown_propensities_and_states_are_counted(self, client: Client) -> None:
        await live(client, PEOPLE, likes_high_energy)
        await live(client, PEOPLE[:30], likes_high_energy, personality=None)
        await record(client, *(logged(f"i{n}", f"user-{n}", LIKE) for n in range(20)))
        answer = await evaluate(client, policies=[RULES])
        assert answer.interactions == 450
        assert (answer.unknown_propensity, answer.unknown_state, answer.evaluated) == (50, 30, 400)

    @pytest.mark.parametrize(
        ("fields", "field"),
        [
            ({"policies": [epb.Policy()]}, "policies[0]"),
            ({"policies": [RULES, epb.Policy(version=-1)]}, "policies[1]"),
            ({"policies": [RULES] * 17}, "policies"),
            ({"confidence": 0.4}, "confidence"),
            ({"confidence": float("nan")}, "confidence"),
            ({"test_days": 0}, "test_days"),
        ],
    )
    async def test_bad_questions(self, client: Client, fields: dict[str, Any], field: str) -> None:
        failure = await failure_of(evaluate(client, **fields))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert field in failure.violations

    async def test_a_version_that_is_not_there(self, client: Client) -> None:
        failure = await failure_of(evaluate(client, policies=[epb.Policy(version=5)]))
        assert failure.code == grpc.StatusCode.NOT_FOUND


class TestObjectives:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return enforcing(database_url, tmp_path, gates="report")

    async def test_retraining_under_other_weights_stands_apart(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        for _ in range(6):
            await live(client, PEOPLE, lambda _: [LIKE], **CALM)
        main = await train(client)
        before = await db.fetch("SELECT user_id, trained_through FROM users ORDER BY 1")
        apart = await train(
            client,
            mode=tpb.TRAINING_MODE_REBUILD,
            objectives=epb.Objectives(engagement=0.0, novelty=1.0),
            hyperparameters=tpb.Hyperparameters(discount_factor=0.0),
        )
        assert apart.status == COMPLETED
        assert (apart.objectives.engagement, apart.objectives.novelty) == (0, 1)
        assert apart.objectives.HasField("diversity")
        assert apart.served_percent == 0
        assert (await get_rollout(client)).rollout.version == main.model_version
        assert await db.fetch("SELECT user_id, trained_through FROM users ORDER BY 1") == before
        model = await client.models.GetModel(
            mpb.GetModelRequest(version=apart.model_version), metadata=ADMIN
        )
        assert not model.model.main_line
        assert model.model.objectives.novelty == 1

        # Everything was liked alike, so its policy is the most exploratory one.
        for _ in range(6):
            await live(client, PEOPLE, lambda _: [LIKE], **CALM)
        answer = await evaluate(
            client,
            policies=[
                epb.Policy(version=main.model_version),
                epb.Policy(version=apart.model_version),
            ],
        )
        novelties = [
            {o.objective: o.estimate.value for o in p.objectives}["novelty"]
            for p in answer.policies
        ]
        assert novelties[1] == pytest.approx(1.0)
        assert novelties[1] > novelties[0] or novelties[0] == pytest.approx(1.0)
        assert answer.policies[1].pareto_optimal
        exploratory = [a.index for a in ACTIONS if a.novelty == "exploratory"]
        assert sum(answer.policies[1].action_shares[n] for n in exploratory) == pytest.approx(1)

        # The main line goes on from where it was.
        again = await train(client)
        assert again.parent_version == main.model_version
        assert again.interactions_trained == 2400

    async def test_nothing_is_learned_on_top_of_a_version_that_stands_apart(
        self, client: Client
    ) -> None:
        await live(client, PEOPLE, likes_high_energy)
        apart = await train(
            client, mode=tpb.TRAINING_MODE_REBUILD, objectives=epb.Objectives(novelty=1.0)
        )
        await set_rollout(client, version=apart.model_version, percent=100)
        main = await train(client)
        assert (main.parent_version, main.statistics.total_updates) == (0, 400)

    async def test_other_weights_need_a_rebuild(self, client: Client) -> None:
        failure = await failure_of(train(client, objectives=epb.Objectives(novelty=1.0)))
        assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
        assert "objectives" in failure.violations
        failure = await failure_of(
            train(
                client,
                mode=tpb.TRAINING_MODE_REBUILD,
                objectives=epb.Objectives(novelty=float("inf")),
            )
        )
        assert "objectives.novelty" in failure.violations
