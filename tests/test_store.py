"""The store against a real Postgres: reading, partitions, idempotence, checksums, backups."""

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
import zstandard

from recparams.v1 import models_pb2 as mpb
from recparams.v1 import training_pb2 as tpb
from recparams_rl.policy import publish
from recparams_rl.smoothing import Smoothing, Visited
from recparams_rl.state import TRAITS, StateSpace
from recparams_server.app import App
from recparams_server.contract.interaction import NewInteractions, to_microseconds
from recparams_server.settings import Settings
from recparams_server.store import activations, interactions, models, profiles, training, users
from recparams_server.store.columns import INTERACTIONS, Rows, StateEncoder, copy_rows
from recparams_server.store.database import Pool, create_pool
from recparams_server.store.interaction_keys import key_of
from recparams_server.store.locks import MAINTENANCE_LOCK
from recparams_server.store.migration import migrate
from tests.faults import (
    SMALL,
    SPACE,
    assert_same,
    batch,
    eventually,
    holding,
    learned,
    stored_table,
)
from tests.processes import run
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    Client,
    connect,
    failure_of,
    in_process,
    new_interactions,
    record,
    request,
    train,
    wait_serving,
)

NOW = datetime.now(UTC)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    created = await create_pool(database_url, 8)
    yield created
    await created.close()


SCORES = dict(zip(TRAITS, (1, 2, 3, 4, 5), strict=True))
DECIDED = {"reactions": 1, "content_type": 1, "mood": 1, "time_of_day": 1, "action": 3}


def new(
    ids: Sequence[str],
    user_ids: Sequence[str] = (),
    instants: Sequence[datetime] = (),
    **columns: Any,
) -> NewInteractions:
    at = [to_microseconds(one) for one in instants] or to_microseconds(NOW)
    given = {"occurred_at": at, **DECIDED, **SCORES, **columns}
    return new_interactions([*ids], [*user_ids] or ["ada"] * len(ids), **given)


async def recorded(pool: Pool, given: NewInteractions) -> list[str]:
    return (await interactions.record(pool, given)).ids


class TestReading:
    """COPY BINARY into NumPy gives what plain SQL gives."""

    COLUMNS = ("completion_rate", "mood_change", "propensity", *TRAITS)

    async def insert_random(self, db: asyncpg.Connection, count: int) -> None:
        draw = random.Random(count)

        def perhaps(low: float, high: float) -> float | None:
            return draw.uniform(low, high) if draw.random() < 0.7 else None

        for week in range(4):
            await interactions.ensure_partition(db, NOW - timedelta(weeks=week))
        await db.executemany(
            """
            INSERT INTO interactions (interaction_id, user_key, occurred_at, content_type, mood,
                time_of_day, action, reactions, completion_rate, mood_change, propensity,
                openness, conscientiousness, extraversion, agreeableness, neuroticism)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
            """,
            [
                (
                    str(row),
                    draw.randrange(-(2**63), 2**63),
                    NOW - timedelta(microseconds=draw.randrange(3 * 7 * 86400 * 10**6)),
                    draw.randint(1, 3),
                    draw.randint(1, 8),
                    draw.randint(1, 4),
                    draw.randrange(27),
                    draw.randrange(64),
                    perhaps(0, 1),
                    perhaps(-1, 1),
                    perhaps(0, 1),
                    *(perhaps(0, 100) for _ in TRAITS),
                )
                for row in range(count)
            ],
        )

    # A piece is handed on from 4096 rows.
    @pytest.mark.parametrize("count", [0, 1, 4096, 9001])
    async def test_every_value_of_every_row(self, db: asyncpg.Connection, count: int) -> None:
        await self.insert_random(db, count)
        pieces: list[Rows] = []

        async def add(rows: Rows) -> None:
            pieces.append(rows.copy())

        await copy_rows(
            db,
            f"SELECT {INTERACTIONS.select_list} FROM interactions AS i "
            "WHERE i.id <= $1 AND i.occurred_at > $2",
            2**62,
            NOW - timedelta(weeks=52),
            on_rows=add,
        )
        plain = await db.fetch("SELECT * FROM interactions ORDER BY id")
        assert sum(len(piece) for piece in pieces) == len(plain) == count
        if not count:
            return
        assert len(pieces) > 1 or count <= 4096
        read = np.concatenate(pieces)
        read = read[np.argsort(read["id"].astype(np.int64))]
        epoch = datetime(2000, 1, 1, tzinfo=UTC)
        expected = {
            "id": [row["id"] for row in plain],
            "user": [row["user_key"] for row in plain],
            "time": [(row["occurred_at"] - epoch) // timedelta(microseconds=1) for row in plain],
            **{
                name: [row[name] for row in plain]
                for name in ("content_type", "mood", "time_of_day", "action", "reactions")
            },
        }
        for name, values in expected.items():
            assert read[name].tolist() == values, name
        nulls = 0
        for name in self.COLUMNS:
            values = np.array([row[name] for row in plain], dtype=np.float32)
            assert np.array_equal(read[name].astype(np.float32), values, equal_nan=True), name
            nulls += int(np.isnan(values).sum())
        assert nulls or count == 1

    async def test_states(self, db: asyncpg.Connection) -> None:
        await self.insert_random(db, 500)
        await db.execute(
            "INSERT INTO users OVERRIDING SYSTEM VALUE "
            "SELECT DISTINCT user_key, user_key::text FROM interactions"
        )
        space = StateSpace(bins=3, moods=("happy", "calm", "neutral"))
        states: list[int] = []
        encode = StateEncoder(space)

        async def add(rows: Rows) -> None:
            states.extend(encode(rows).tolist())

        query = f"SELECT {INTERACTIONS.select_list} FROM interactions AS i ORDER BY id"
        await copy_rows(db, query, on_rows=add)
        for state, row in zip(
            states,
            await db.fetch("SELECT * FROM interactions_named ORDER BY id"),
            strict=True,
        ):
            if row["mood"] not in space.moods:
                assert state == -2
            elif any(row[trait] is None for trait in TRAITS):
                assert state == -1
            else:
                bins, context = space.decode(state)
                assert bins == tuple(space.discretize(row[trait]) for trait in TRAITS)
                assert (context.content_type, context.mood, context.time_of_day) == (
                    row["content_type"],
                    row["mood"],
                    row["time_of_day"],
                )


async def partitions(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch("SELECT relname FROM pg_class WHERE relname ~ '^interactions_....w..$'")
    return sorted(row["relname"] for row in rows)


def week_name(instant: datetime) -> str:
    year, week, _ = instant.isocalendar()
    return f"interactions_{year}w{week:02d}"


class TestPartitions:
    async def test_past_weeks_are_made_on_demand(self, db: asyncpg.Connection, pool: Pool) -> None:
        instants = [NOW - timedelta(weeks=week, hours=week) for week in (0, 3, 20, 3)]
        assert await partitions(db) == []
        names = ["0", "1", "2", "3"]
        batch_ = new(names, [f"u{name}" for name in names], instants)
        assert await recorded(pool, batch_) == names
        assert await partitions(db) == sorted({week_name(instant) for instant in instants})
        assert await db.fetchval("SELECT count(*) FROM interactions") == 4
        assert await recorded(pool, batch_) == []

    @pytest.mark.parametrize(
        "instant",
        [
            datetime(2020, 12, 31, 23, 59, 59, 999999, UTC),
            datetime(2021, 1, 1, tzinfo=UTC),
            datetime(2021, 1, 3, 23, 59, 59, 999999, UTC),
            datetime(2021, 1, 4, tzinfo=UTC),
            datetime(2018, 12, 31, tzinfo=UTC),
            datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        ],
    )
    @pytest.mark.parametrize("zone", ["UTC", "America/Los_Angeles", "Asia/Kolkata"])
    async def test_weeks_begin_on_monday_in_utc(
        self, db: asyncpg.Connection, instant: datetime, zone: str
    ) -> None:
        await db.execute(f"SET timezone = '{zone}'")
        await interactions.ensure_partition(db, instant)
        where = await db.fetchval(
            """
            INSERT INTO interactions (interaction_id, user_key, occurred_at, content_type, mood,
                time_of_day, action, reactions)
            VALUES ('i', 1, $1, 1, 1, 1, 1, 1) RETURNING tableoid::regclass::text
            """,
            instant,
        )
        assert where == week_name(instant)

    async def test_several_servers_make_the_same_week(
        self, db: asyncpg.Connection, database_url: str
    ) -> None:
        connections = [await asyncpg.connect(database_url) for _ in range(6)]
        for week in range(8):
            instant = NOW - timedelta(weeks=week)
            await asyncio.gather(
                *(interactions.ensure_partition(connection, instant) for connection in connections)
            )
        assert len(await partitions(db)) == 8
        for connection in connections:
            await connection.close()

    async def test_maintenance(self, db: asyncpg.Connection, pool: Pool) -> None:
        retention = timedelta(weeks=4)
        ages = [0, 20, 29, 34, 36, 60]
        instants = [NOW - timedelta(days=age) for age in ages]
        await recorded(pool, new([f"{age} days" for age in ages], (), instants))
        before = await partitions(db)
        dropped = await interactions.maintain(pool, NOW, retention)

        def is_over(age: int) -> bool:
            day = NOW - timedelta(days=age)
            monday = day.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(
                days=day.weekday()
            )
            return monday + timedelta(weeks=1) <= NOW - retention

        expired = sorted({week_name(NOW - timedelta(days=age)) for age in ages if is_over(age)})
        assert is_over(36) and not is_over(20)
        assert dropped == expired
        ahead = {week_name(NOW + timedelta(weeks=week)) for week in range(5)}
        assert set(await partitions(db)) == (set(before) | ahead) - set(dropped)
        kept = {row["interaction_id"] for row in await db.fetch("SELECT * FROM interactions")}
        assert kept == {f"{age} days" for age in ages if not is_over(age)}
        keys = {row["key"].bytes for row in await db.fetch("SELECT * FROM interaction_keys")}
        assert keys == {key_of(interaction_id) for interaction_id in kept}
        assert await interactions.maintain(pool, NOW, retention) == []
        assert await recorded(pool, new(sorted(kept))) == []

    @pytest.mark.parametrize("hours", [1, 3 * 24, 7 * 24 - 1])
    async def test_an_id_is_known_as_long_as_its_row_is_there(
        self, db: asyncpg.Connection, pool: Pool, hours: int
    ) -> None:
        """Even where its week is past retention up to some hour of it."""
        monday = NOW.replace(hour=0, minute=0) - timedelta(days=NOW.weekday(), weeks=9)
        await recorded(pool, new(["old"], (), [monday]))
        retention = timedelta(weeks=4)
        now = monday + retention + timedelta(hours=hours)
        assert await interactions.maintain(pool, now, retention) == []
        assert await recorded(pool, new(["old"])) == []
        assert len(await interactions.maintain(pool, now + timedelta(weeks=1), retention)) == 1
        assert await recorded(pool, new(["old"])) != []

    async def test_a_row_that_comes_while_others_expire_keeps_its_id(
        self, db: asyncpg.Connection, pool: Pool, database_url: str
    ) -> None:
        old, older, retention = NOW - timedelta(weeks=9), NOW - timedelta(weeks=12), timedelta(28)
        await recorded(pool, new(["old"], (), [old]))
        await db.execute(f"ALTER TABLE interactions DETACH PARTITION {week_name(old)}")
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass"
        async with holding(database_url, f"LOCK {week_name(old)} IN ACCESS SHARE MODE"):
            maintaining = asyncio.create_task(interactions.maintain(pool, NOW, retention))
            await eventually(lambda: db.fetchval(waiting, week_name(old)))
            await recorded(pool, new(["older"], (), [older]))
        assert await maintaining == [week_name(old)]
        assert await recorded(pool, new(["older"])) == []
        assert await recorded(pool, new(["old"])) != []

    async def test_one_replica_at_a_time(self, db: asyncpg.Connection, pool: Pool) -> None:
        await recorded(pool, new(["old"], (), [NOW - timedelta(weeks=9)]))
        lock = f"SELECT pg_advisory_lock({MAINTENANCE_LOCK})"
        await db.execute(lock)
        assert await interactions.maintain(pool, NOW, timedelta(weeks=4)) == []
        await db.execute(lock.replace("lock(", "unlock("))
        assert len(await interactions.maintain(pool, NOW, timedelta(weeks=4))) == 1

    async def is_pending(self, db: asyncpg.Connection) -> bool:
        return bool(await db.fetchval("SELECT count(*) FROM pg_inherits WHERE inhdetachpending"))

    @pytest.mark.parametrize("left_after", ["the first step of detaching", "detaching"])
    async def test_a_drop_that_was_left_half_way(
        self, db: asyncpg.Connection, pool: Pool, database_url: str, left_after: str
    ) -> None:
        old = NOW - timedelta(weeks=9)
        await recorded(pool, new(["old", "new"], (), [old, NOW]))
        name = week_name(old)
        if left_after == "detaching":
            await db.execute(f"ALTER TABLE interactions DETACH PARTITION {name}")
        else:
            # The second step waits for whoever is reading; giving up then leaves the first one.
            detach = f"ALTER TABLE interactions DETACH PARTITION {name} CONCURRENTLY"
            async with holding(database_url, "SELECT count(*) FROM interactions"):
                detaching = await asyncpg.connect(database_url)
                task = asyncio.create_task(detaching.execute(detach))
                await eventually(lambda: self.is_pending(db))
                await db.execute("SELECT pg_terminate_backend($1)", detaching.get_server_pid())
                with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)):
                    await task
            assert await self.is_pending(db)
        assert name in await partitions(db)
        assert await interactions.maintain(pool, NOW, timedelta(weeks=4)) == [name]
        assert name not in await partitions(db)
        keys = await db.fetch("SELECT key FROM interaction_keys")
        assert [row["key"].bytes for row in keys] == [key_of("new")]


class TestRecording:
    async def test_overlapping_batches_at_once(self, db: asyncpg.Connection, pool: Pool) -> None:
        names = [f"i{n}" for n in range(400)]

        async def write(writer: int) -> int:
            draw = random.Random(writer)
            stored = 0
            for _ in range(8):
                chosen = draw.sample(names, 100)
                at = NOW - timedelta(weeks=draw.randrange(10))
                people = [f"u{draw.randrange(30)}" for _ in chosen]
                stored += len(await recorded(pool, new(chosen, people, [at] * len(chosen))))
            return stored

        stored = sum(await asyncio.gather(*(write(writer) for writer in range(8))))
        missing = await recorded(pool, new(names))
        assert stored + len(missing) == len(names)
        counts = await db.fetch("SELECT interaction_id FROM interactions")
        assert sorted(row["interaction_id"] for row in counts) == sorted(names)
        assert await db.fetchval("SELECT count(*) FROM interaction_keys") == len(names)

    async def test_few_and_many_are_stored_alike(
        self, db: asyncpg.Connection, pool: Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is unknown of them, and whoever is new or has a profile."""
        draw = random.Random(3)
        await profiles.put(pool, {"u1": (1, 2, 3, 4, 5), "u2": (6, 7, 8, 9, 10)})

        for number in range(60):
            at = to_microseconds(NOW) - draw.randrange(2 * 7 * 86400 * 10**6)
            known: dict[str, Any] = {
                "occurred_at": at,
                "reactions": draw.randrange(64),
                "content_type": draw.randint(1, 3),
                "mood": draw.randint(1, 8),
                "time_of_day": draw.randint(1, 4),
                "action": draw.randrange(27),
            }
            scores = {trait: draw.uniform(0, 100) for trait in TRAITS}
            perhaps: dict[str, Any] = {
                "completion_rate": draw.random(),
                "mood_change": -draw.random(),
                "propensity": draw.random(),
                "model_version": draw.randrange(2**40),
                "policy_arm": draw.randint(1, 3),
                "source": draw.randint(1, 4),
                "decision_id": draw.randrange(2**63),
                "decided_at": at - 1000 * draw.randrange(10**6),
                "activation_id": draw.randrange(2**31),
            }
            known |= {name: value for name, value in perhaps.items() if draw.random() < 0.7}
            known |= scores if draw.random() < 0.7 else {}
            for way, few in (("few-é", 1), ("many", 0)):
                monkeypatch.setattr(interactions, "FEW", few)
                name = f"{number:03} {way}"
                one = new_interactions([name], [f"u{number % 7}"], **known)
                assert await recorded(pool, one) == [name]
                assert await recorded(pool, one) == []
        rows = await db.fetch(
            """
            SELECT u.user_id, i.* FROM interactions AS i JOIN users AS u USING (user_key)
            ORDER BY interaction_id
            """
        )
        assert len(rows) == 120
        for few_row, many_row in zip(rows[::2], rows[1::2], strict=True):
            assert few_row["interaction_id"].endswith("few-é")
            assert many_row["interaction_id"].endswith("many")
            few_values, many_values = (
                {k: v for k, v in row.items() if k not in ("id", "interaction_id", "recorded_at")}
                for row in (few_row, many_row)
            )
            assert few_values == many_values
        assert any(row["openness"] is None for row in rows)

    async def test_of_who_is_deleted_meanwhile_nothing_is_left_behind(
        self, db: asyncpg.Connection, pool: Pool
    ) -> None:
        for number in range(12):
            many = range(2 * interactions.FEW)
            wanted = new([f"{number}-{i}" for i in many], [f"u{i % 3}" for i in many])
            await asyncio.gather(interactions.record(pool, wanted), users.delete(pool, "u1"))
        orphans = """
            SELECT count(*) FROM interactions LEFT JOIN users USING (user_key)
            WHERE users.user_key IS NULL
        """
        assert await db.fetchval(orphans) == 0
        assert await db.fetchval("SELECT count(*) FROM interactions") == await db.fetchval(
            "SELECT count(*) FROM interaction_keys"
        )

    @pytest.mark.parametrize("few", [0, 10])
    async def test_profiles_and_interactions_of_the_same_people_at_once(
        self, db: asyncpg.Connection, pool: Pool, monkeypatch: pytest.MonkeyPatch, few: int
    ) -> None:
        monkeypatch.setattr(interactions, "FEW", few)
        people = [f"u{n}" for n in range(20)]

        async def write(writer: int) -> None:
            draw = random.Random(writer)
            for number in range(15):
                names = [f"{writer}-{number}-{i}" for i in range(10)]
                unknown = dict.fromkeys(TRAITS, np.nan)
                await recorded(pool, new(names, draw.choices(people, k=10), **unknown))

        async def put(writer: int) -> None:
            draw = random.Random(writer)
            for number in range(15):
                chosen = draw.sample(people, 10)
                await profiles.put(pool, dict.fromkeys(chosen, (number, 1, 2, 3, 4)))

        async def fill() -> None:
            async with pool.acquire() as connection:
                for _ in range(30):
                    await training.fill_in_profiles(connection)

        await asyncio.gather(*(write(n) for n in range(3)), *(put(n) for n in range(3)), fill())
        await profiles.put(pool, dict.fromkeys(people, (50, 50, 50, 50, 50)))
        assert await db.fetchval("SELECT count(*) FROM interactions") == 450
        assert await db.fetchval("SELECT count(*) FROM interactions WHERE openness IS NULL") == 0


def new_model(space: StateSpace = SPACE, action: int = 5) -> models.NewModel:
    """A model whose every state has learned one action."""
    q = np.zeros((space.n_states, 27), dtype=np.float32)
    visits = np.zeros((space.n_states, 27), dtype=np.int32)
    q[:, action], visits[:, action] = 1.0, 100
    policy = publish(
        space,
        Visited.of(q, visits, q),
        learning_rate=0.1,
        epsilon=0.25,
        smoothing=Smoothing(serving_bins=0),
    )
    return models.NewModel(
        origin="imported",
        run_id=None,
        parent_version=None,
        algorithm="q_learning",
        space=space,
        hyperparameters=Settings(admin_key=ADMIN_KEY).hyperparameters().to_dict(),
        metrics={
            "total_states": space.n_states,
            "total_state_actions": space.n_states,
            "avg_q_value": 1.0,
            "max_q_value": 1.0,
            "coverage": 1.0,
            "total_updates": 100 * space.n_states,
            "exploration_rate": 0.25,
        },
        q=q,
        visits=visits,
        rewards=q,
        policy=policy,
        objectives={"engagement": 1.0, "diversity": 0.0, "novelty": 0.0},
        main_line=False,
        trained=None,
    )


async def store(db: asyncpg.Connection, model: models.NewModel) -> int:
    return await models.insert(db, models.encode(model))


def flip(column: str, position: str) -> str:
    return f"{column} = set_byte({column}, {position}, get_byte({column}, {position}) # 1)"


class TestChecksums:
    async def test_what_is_stored_comes_back(self, db: asyncpg.Connection) -> None:
        model = new_model()
        version = await store(db, model)
        assert await models.load_policy(db, version, SPACE) == model.policy
        table = await models.load_table(db, version, SPACE)
        assert np.array_equal(table.q, model.q)
        assert np.array_equal(table.visits, model.visits)

    @pytest.mark.parametrize(
        "change",
        [
            flip("policy", "0"),
            flip("policy", "octet_length(policy) / 2"),
            flip("policy", "octet_length(policy) - 1"),
            "policy = substr(policy, 1, octet_length(policy) - 1)",
            "policy = policy || '\\x00'",
            "policy = ''",
            "policy_checksum = repeat('0', 64)",
            "policy = q_table",
            "metrics = metrics || '{\"exploration_rate\": 2}'",
            "metrics = metrics - 'exploration_rate'",
            "space = '{}'",
            "space = '[]'",
            'space = space || \'{"bins": "many"}\'',
        ],
    )
    async def test_a_changed_policy_is_refused(self, db: asyncpg.Connection, change: str) -> None:
        version = await store(db, new_model())
        await db.execute(f"UPDATE model_versions SET {change}")
        with pytest.raises(models.CorruptModelError, match=f"model version {version}"):
            await models.load_policy(db, version, SPACE)

    @pytest.mark.parametrize(
        "change",
        [
            flip("q_table", "0"),
            flip("q_table", "octet_length(q_table) / 2"),
            flip("q_table", "octet_length(q_table) - 1"),
            "q_table = substr(q_table, 1, octet_length(q_table) - 1)",
            "q_table = policy",
            "q_table_checksum = policy_checksum",
            "space = space || '{\"bins\": 3}'",
            "space = '{}'",
        ],
    )
    async def test_a_changed_table_is_refused(self, db: asyncpg.Connection, change: str) -> None:
        version = await store(db, new_model())
        await db.execute(f"UPDATE model_versions SET {change}")
        with pytest.raises(models.CorruptModelError, match=f"model version {version}"):
            await models.load_table(db, version)

    @pytest.mark.parametrize(
        "data",
        [
            b"not zstd",
            zstandard.compress(b"too short"),
            zstandard.compress(bytes(2 * SPACE.n_states + 1)),
            zstandard.compress(bytes([27]) * SPACE.n_states + bytes(SPACE.n_states)),
            zstandard.compress(bytes(SPACE.n_states) + bytes([3]) * SPACE.n_states),
        ],
        ids=["not compressed", "short", "long", "impossible action", "impossible source"],
    )
    async def test_a_wrong_policy_with_the_right_checksum(
        self, db: asyncpg.Connection, data: bytes
    ) -> None:
        version = await store(db, new_model())
        space = json.dumps(SPACE.to_dict(), sort_keys=True)
        await db.execute(
            "UPDATE model_versions SET policy = $1, policy_checksum = $2",
            data,
            hashlib.sha256(space.encode() + data).hexdigest(),
        )
        with pytest.raises(models.CorruptModelError):
            await models.load_policy(db, version, SPACE)

    async def test_another_space_is_refused(self, db: asyncpg.Connection) -> None:
        version = await store(db, new_model(replace(SPACE, moods=("happy", "calm"))))
        for load in (models.load_policy, models.load_table):
            with pytest.raises(models.IncompatibleModelError, match="moods differ"):
                await load(db, version, SPACE)
        with pytest.raises(LookupError):
            await models.load_policy(db, version + 1, SPACE)


async def activate(db: asyncpg.Connection, version: int) -> None:
    """As an operator might, past the checks of the service."""
    await db.execute(
        """
        INSERT INTO model_activations (version, rollback_to)
        SELECT $1, max(id) FROM model_activations
        """,
        version,
    )


async def serving(client: Client) -> tuple[int, int]:
    """(active version, serving version)."""
    answer = await client.models.ListModels(mpb.ListModelsRequest(), metadata=ADMIN)
    return answer.active_version, answer.serving_version


async def decided_by(client: Client) -> int:
    answer = await client.recommendation.GetRecommendationParams(request())
    return int(answer.model_version)


class TestServing:
    async def fresh_server(
        self, settings: Settings, check: Callable[[Client], Any], **changes: object
    ) -> Any:
        app = App(settings.model_copy(update=changes))
        await app.start()
        try:
            async with connect(f"127.0.0.1:{app.port}") as client:
                await wait_serving(client)
                return await check(client)
        finally:
            await app.stop()

    async def test_a_corrupt_version_is_not_served(
        self, client: Client, db: asyncpg.Connection, settings: Settings
    ) -> None:
        first, second, third = [await store(db, new_model(action=n)) for n in (1, 2, 3)]

        async def shows(*expected: int) -> bool:
            return await serving(client) == expected

        for version in (first, second):
            await activate(db, version)
        await eventually(lambda: shows(second, second))
        await db.execute(
            f"UPDATE model_versions SET {flip('policy', '9')} WHERE version = $1", third
        )
        await activate(db, third)
        for _ in range(20):
            assert await shows(third, second)
            assert await decided_by(client) == second
            await asyncio.sleep(0.02)
        assert await self.fresh_server(settings, serving) == (third, second)

        await db.execute(
            f"UPDATE model_versions SET {flip('policy', '9')} WHERE version = $1", second
        )
        assert await self.fresh_server(settings, serving) == (third, first)
        assert await self.fresh_server(settings, decided_by) == first
        assert await decided_by(client) == second

        await db.execute(
            f"UPDATE model_versions SET {flip('policy', '9')} WHERE version = $1", first
        )
        assert await self.fresh_server(settings, serving) == (third, 0)
        assert await self.fresh_server(settings, decided_by) == 0

    async def test_a_version_of_another_space_is_not_served(
        self, client: Client, db: asyncpg.Connection, settings: Settings
    ) -> None:
        version = await store(db, new_model())
        await activate(db, version)

        async def is_served() -> bool:
            return await serving(client) == (version, version)

        await eventually(is_served)
        assert await self.fresh_server(settings, serving, bins=3) == (version, 0)
        assert await self.fresh_server(settings, decided_by, bins=3) == 0

    async def test_nothing_is_learned_on_top_of_a_corrupt_table(
        self, client: Client, db: asyncpg.Connection
    ) -> None:
        await record(client, *batch(0))
        first = await train(client)
        await record(client, *batch(1))
        await db.execute(f"UPDATE model_versions SET {flip('q_table', '9')}")
        failure = await failure_of(
            client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
        )
        assert failure.code == grpc.StatusCode.FAILED_PRECONDITION
        assert f"model version {first.model_version}: the table fails its checksum" in (
            failure.message
        )
        assert await decided_by(client) == first.model_version
        rebuilt = await train(client, mode=tpb.TRAINING_MODE_REBUILD)
        assert rebuilt.status == tpb.TRAINING_RUN_STATUS_COMPLETED
        assert_same(await stored_table(db, rebuilt.model_version), learned(batch(0) + batch(1)))


def run_tool(postgres: Any, *command: str) -> None:
    done = run(postgres.bin_path / command[0], *command[1:])
    assert done.returncode == 0, done.stderr


async def test_a_restored_backup_goes_on_where_it_was(
    client: Client,
    db: asyncpg.Connection,
    database_url: str,
    postgres: Any,
    settings: Settings,
    tmp_path: Path,
) -> None:
    await record(client, *batch(0))
    first = await train(client)
    await record(client, *batch(1))
    dump = tmp_path / "backup.sql"
    await asyncio.to_thread(run_tool, postgres, "pg_dump", "-d", database_url, "-f", str(dump))

    name = f"restored_{uuid.uuid4().hex[:12]}"
    await db.execute(f"CREATE DATABASE {name}")
    url = postgres.get_uri(database=name)
    try:
        options: Sequence[str] = ("-v", "ON_ERROR_STOP=1", "-q", "-d", url, "-f", str(dump))
        await asyncio.to_thread(run_tool, postgres, "psql", *options)
        app = App(Settings(**{**settings.model_dump(), "database_url": url}))
        await app.start()
        restored_db = await asyncpg.connect(url)
        try:
            async with connect(f"127.0.0.1:{app.port}") as restored:
                await wait_serving(restored)
                assert await decided_by(restored) == first.model_version
                assert (await record(restored, *batch(1))).recorded == 0
                second = await train(restored)
                assert second.interactions_trained == len(batch(1))
                assert_same(
                    await stored_table(restored_db, second.model_version),
                    learned(batch(0) + batch(1)),
                )
                newer = await record(restored, *batch(2))
                assert newer.recorded == len(batch(2))
                third = await train(restored)
                assert third.interactions_trained == len(batch(2))
                assert_same(
                    await stored_table(restored_db, third.model_version),
                    learned(batch(0) + batch(1) + batch(2)),
                )
        finally:
            await restored_db.close()
            await app.stop()
    finally:
        await db.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_an_older_schema_is_upgraded_with_what_it_holds(
    db: asyncpg.Connection, postgres: Any
) -> None:
    name = f"older_{uuid.uuid4().hex[:12]}"
    await db.execute(f"CREATE DATABASE {name}")
    url = postgres.get_uri(database=name)
    try:
        await migrate(url, "0001")
        older = await asyncpg.connect(url)
        await older.execute(
            """
            INSERT INTO users (user_id) VALUES ('ada');
            SELECT ensure_interactions_partition(now());
            INSERT INTO interactions (
                occurred_at, user_key, interaction_id, content_type, mood, time_of_day, action,
                reactions
            ) VALUES (now(), 1, 'i', 1, 1, 1, 26, 1);
            INSERT INTO interaction_keys VALUES ('i', now()), ('j-é', now());
            INSERT INTO model_versions (
                origin, algorithm, space, hyperparameters, metrics, q_table, q_table_checksum,
                policy, policy_checksum
            ) VALUES ('imported', 'q_learning', '{}', '{}', '{}', '', '', '', '');
            INSERT INTO model_activations (version) VALUES (1)
            """
        )
        await migrate(url, "0005")
        await older.execute(
            """
            INSERT INTO system_tasks (task_name, status, request_id, error, metadata) VALUES
                ('rl_training', 'gated', 'a', 'too few', '{"training": {"model_version": 1}}'),
                ('rl_training', 'completed', 'b', '',
                    '{"training": {"model_version": 2, "served_percent": 100}}'),
                ('rl_training', 'completed', 'c', '', '{"training": {"model_version": null}}'),
                ('rl_training', 'failed', 'd', 'killed', '{}'),
                ('rollout_watch', 'completed', 'e', '', '{}')
            """
        )
        await migrate(url)
        runs = await older.fetch("SELECT * FROM system_tasks ORDER BY id")
        assert [(run["status"], run["outcome"], run["error"]) for run in runs] == [
            ("completed", "refused", ""),
            ("completed", "activated", ""),
            ("completed", "no_change", ""),
            ("failed", None, "killed"),
            ("completed", None, ""),
        ]
        assert json.loads(runs[0]["metadata"])["training"]["outcome_reason"] == "too few"
        keys = await older.fetch("SELECT key FROM interaction_keys")
        assert {row["key"].bytes for row in keys} == {key_of("i"), key_of("j-é")}
        row = await older.fetchrow("SELECT * FROM interactions_named")
        assert (row["user_id"], row["novelty_objective"]) == ("ada", 1)
        assert row["policy_arm"] is None and row["experiment_id"] is None
        assert not await older.fetchval("SELECT main_line FROM model_versions")
        current = await activations.current_activation(older)
        assert (current.version, current.split.percent, current.is_ramp) == (1, 100, False)
        await older.execute("SELECT ensure_interactions_partition(now() + interval '9 weeks')")
        await older.close()
    finally:
        await db.execute(f"DROP DATABASE {name} WITH (FORCE)")
