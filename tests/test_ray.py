"""Training dealt out by cells: without Ray in every run of the tests, with it where it is there."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_rl.learners.registry import LEARNERS
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.state import NO_CELL, StateSpace
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training import exports, on_disk
from recparams_server.jobs.training.buckets import Buckets
from recparams_server.jobs.training.engine import Engine, OneProcess, Work
from recparams_server.jobs.training.holdout import held_out, split_time
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.reading import Reading
from recparams_server.jobs.training.shards import (
    Part,
    Shard,
    cell_expression,
    interactions_by_cell,
    learn_block,
    merge_shards,
    read_shard,
    shard_rows,
    split_cells,
    write_shard_rows,
)
from recparams_server.settings import Settings
from recparams_server.store import models, training
from tests.support import ADMIN, Client, failure_of, in_process, record, train
from tests.test_cli import run

SPACE = StateSpace(bins=3)
TABLES = [name for name, one in LEARNERS.items() if issubclass(one, TabularLearner)]
NOW = datetime.now(UTC)
with_parquet = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra ray")
with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url, tmp_path, bins=3, gates="report", ray_shards=3, settling_seconds=0
    )


def history(people: int = 60) -> list[pb.Interaction]:
    """Sessions of people of whom some change, some have no profile, some have little to go by."""
    rng = np.random.default_rng(1)
    found = []
    for person in range(people):
        scores = rng.uniform(0, 100, 5).tolist()
        for number in range(int(rng.integers(1, 25))):
            if person % 7 == 0 and number == 9:
                scores = rng.uniform(0, 100, 5).tolist()
            names = ("openness", "conscientiousness", "extraversion", "agreeableness")
            profile = types.PersonalityProfile(
                **dict(zip((*names, "neuroticism"), scores, strict=True))
            )
            message = pb.Interaction(
                interaction_id=f"{person}-{number}",
                user_id=f"person-{person}",
                reactions=[int(rng.choice([1, 2, 3, 4]))],
                logged_decision=pb.LoggedDecision(
                    personality=None if person % 11 == 0 and number % 3 else profile,
                    content_type=int(rng.integers(1, 4)),
                    mood=int(rng.integers(1, 9)),
                    time_of_day=int(rng.integers(1, 5)),
                    action=types.Action(
                        energy=int(rng.integers(1, 4)),
                        diversity=int(rng.integers(1, 4)),
                        novelty=int(rng.integers(1, 4)),
                    ),
                ),
            )
            pause = timedelta(hours=person % 5 + 40 * (number // 6), minutes=7 * number)
            message.occurred_at.FromDatetime(NOW - timedelta(days=20) + pause)
            found.append(message)
    return found


class InTurn(Engine):
    """Shards one after the other in this process: what Ray does, without Ray."""

    def __init__(
        self, settings: Settings, connection: Any, shards: int, folder: Path | None = None
    ) -> None:
        self._settings, self._connection, self._wanted = settings, connection, shards
        self._folder = folder
        self.shards: list[Shard] = []
        self.parts: list[Part] = []
        self.split: int | None = None

    async def prepare(self, work: Any, reading: Reading, progress: Progress) -> Work:
        space = self._settings.space()
        self.reading = reading
        if self._folder is None:
            weights = await interactions_by_cell(self._connection, space, reading)
            self.shards = split_cells(weights, space.n_cells, self._wanted)
            found = [
                await read_shard(self._connection, self._settings, reading, shard)
                for shard in self.shards
            ]
        else:
            self.shards = list(exports.load(self._folder).shards)
            found = [
                exports.read_file(self._settings, reading, shard, exports.file_of(self._folder, i))
                for i, shard in enumerate(self.shards)
            ]
        self.parts = [part for part, _ in found]
        times = np.concatenate([count.time for _, count in found])
        self.split = split_time(times, self._settings.holdout_share)
        tails = [held_out(part.time, self.split) for part in self.parts]
        return merge_shards(
            [count for _, count in found],
            [part.log[tail] for part, tail in zip(self.parts, tails, strict=True)],
            [part.ids[tail] for part, tail in zip(self.parts, tails, strict=True)],
        )

    async def learn(self, learner: Any, *, tail: bool, on_progress: Any) -> None:
        space, arrays = self._settings.space(), learner.arrays()
        for shard, part in zip(self.shards, self.parts, strict=True):
            block = shard_rows(space, arrays, shard)
            learned = learn_block(
                self._settings, self.reading, shard, part, self.split, tail, block
            )
            write_shard_rows(space, arrays, shard, learned)

    async def close(self) -> None:
        self.parts = []


async def worked(
    engine: Engine, settings: Settings, connection: Any, algorithm: str, rebuild: bool = True
) -> tuple[Work, Any]:
    """What an engine finds and learns."""
    request = RunRequest(
        rebuild=rebuild,
        days_back=60,
        min_interactions_per_user=5,
        hyperparameters=LEARNERS[algorithm].Settings(settling_seconds=0.0),
        as_of=NOW,
        activate=False,
        algorithm=algorithm,
    )
    through = await training.snapshot(connection)
    traits = LEARNERS[algorithm].needs_traits
    reading = Reading(request, NOW - timedelta(days=60), through, traits=traits)
    learner = LEARNERS[algorithm](settings.space(), request.hyperparameters)
    work = await engine.prepare(connection, reading, Progress())
    await engine.learn(learner, tail=False, on_progress=lambda _: None)
    await engine.learn(learner, tail=True, on_progress=lambda _: None)
    await engine.close()
    return work, learner.arrays()


@pytest.fixture
async def recorded(client: Client, db: asyncpg.Connection) -> AsyncIterator[asyncpg.Connection]:
    await record(client, *history())
    yield db


@pytest.mark.parametrize("algorithm", TABLES)
async def test_any_number_of_shards_learns_the_same_table(
    settings: Settings, recorded: asyncpg.Connection, algorithm: str
) -> None:
    expected, table = await worked(OneProcess(settings), settings, recorded, algorithm)
    assert expected.transitions > 300 and len(expected.log) > 20
    assert len(expected.waiting_users) > 5 and expected.waiting > 20
    for shards in (1, 2, 3, 7) if algorithm == "q_learning" else (3,):
        engine = InTurn(settings, recorded, shards)
        found, dealt = await worked(engine, settings, recorded, algorithm)
        assert len(engine.shards) == shards
        for name, array in table.items():
            assert dealt[name].tobytes() == array.tobytes(), (name, shards)
        same(found, expected)


@pytest.mark.parametrize("algorithm", [*TABLES, "lin_ucb"])
async def test_any_amount_of_memory_learns_the_same(
    settings: Settings,
    recorded: asyncpg.Connection,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, arrays = await worked(OneProcess(settings), settings, recorded, algorithm)
    little = settings.model_copy(update={"training_memory_mb": 64})
    for rows, latest in ((40, 1000), (300, expected.transitions // 2)):
        monkeypatch.setattr(on_disk, "LEAST_ROWS", rows)
        monkeypatch.setattr(on_disk, "MOST_HELD_OUT", latest)
        read: list[int] = []
        chained = on_disk.due_transitions
        monkeypatch.setattr(
            on_disk,
            "due_transitions",
            lambda some, *rest, chained=chained, read=read: (
                read.append(len(some.id)) or chained(some, *rest)
            ),
        )
        found, learned = await worked(OneProcess(little), little, recorded, algorithm)
        assert len(read) > 1 and max(read) <= rows
        for name, array in arrays.items():
            assert learned[name].tobytes() == array.tobytes(), (name, rows)
        same(found, expected)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), max_size=30),
    scale=st.sampled_from([1, 2**60]),
    ids=st.permutations(range(30)),
)
def test_rows_are_in_the_order_of_learning(
    rows: list[tuple[int, int]], scale: int, ids: list[int]
) -> None:
    cell, time = np.array(rows, np.int64).reshape(-1, 2).T
    id_ = np.array(ids[: len(rows)], np.int64)
    expected = sorted(range(len(rows)), key=lambda row: (*rows[row], ids[row]))
    assert on_disk._order(cell, time * scale, id_).tolist() == expected


def test_rows_in_buckets_are_read_by_ranges_of_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    bucket = rng.choice([0, 3, 4, 7], 1000)
    columns = {"n": np.arange(1000), "x": rng.random((1000, 2), np.float32)}
    buckets = Buckets(tmp_path, 8)
    for piece in (slice(0, 600), slice(600, 600), slice(600, 1000)):
        buckets.add(bucket[piece], {name: column[piece] for name, column in columns.items()})
    assert not list(tmp_path.iterdir())
    for most, held in ((1, [[0], [3], [4], [7]]), (600, [[0, 3], [4, 7]]), (2000, [[0, 3, 4, 7]])):
        parts = list(buckets.parts(most))
        assert [np.unique(bucket[part["n"]]).tolist() for part in parts] == held
        found = np.concatenate([part["n"] for part in parts])
        assert sorted(found) == list(range(1000))
        x = np.concatenate([part["x"] for part in parts])
        assert x.tobytes() == columns["x"][found].tobytes()
    buckets.close()


def same(found: Work, expected: Work) -> None:
    for name, value in vars(expected).items():
        other = getattr(found, name)
        if name == "average_reward":
            assert other == pytest.approx(value)
        elif name == "log":
            for column in vars(value):
                one, two = getattr(value, column), getattr(other, column)
                assert (one is two is None) or np.array_equal(one, two, equal_nan=True), column
        else:
            assert np.array_equal(other, value), name


@with_parquet
async def test_files_are_read_as_the_database_is(
    settings: Settings, recorded: asyncpg.Connection, database_url: str, tmp_path: Path
) -> None:
    expected, table = await worked(OneProcess(settings), settings, recorded, "q_learning")
    folder = tmp_path / "export"
    options = ("--into", str(folder), "--days", "60", "--mode", "rebuild", "--files", "5")
    command = (*options, "--database-url", database_url)
    done = await run("interactions", "export", *command, RECPARAMS_BINS="3")
    assert done.code == 0, done.err
    count = await recorded.fetchval("SELECT count(*) FROM interactions")
    assert done.out == f"{count} interactions in 5 files: {folder}\n"
    assert "file 5 of 5" in done.err
    engine = InTurn(settings, recorded, 0, folder)
    found, dealt = await worked(engine, settings, recorded, "q_learning")
    same(found, expected)
    assert dealt["q"].tobytes() == table["q"].tobytes()
    assert dealt["visits"].tobytes() == table["visits"].tobytes()

    again = await run("interactions", "export", *command, RECPARAMS_BINS="3")
    assert again.code == 2 and "has an export already" in again.err
    away = ("--into", str(tmp_path / "x"), "--database-url", "postgresql://127.0.0.1:1/x")
    assert (await run("interactions", "export", *away)).code == 4


@with_parquet
async def test_an_export_that_the_database_has_left_behind_is_refused(
    settings: Settings, client: Client, recorded: asyncpg.Connection, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"days_back": 60, "shards": 2, "on_file": lambda *_: None}
    made = await exports.export(settings, tmp_path / "a", rebuild=False, **given)
    await exports.check(recorded, settings, made, rebuild=False)
    assert exports.load(tmp_path / "a") == made
    other = settings.model_copy(update={"bins": 4})
    for wrong, message in (
        (exports.check(recorded, other, made, rebuild=False), "another state space"),
        (exports.check(recorded, settings, made, rebuild=True), "for an incremental run"),
    ):
        with pytest.raises(exports.ExportError, match=message):
            await wrong
    assert (await train(client, days_back=60)).status == tpb.TRAINING_RUN_STATUS_COMPLETED
    with pytest.raises(exports.ExportError, match="another version was trained"):
        await exports.check(recorded, settings, made, rebuild=False)
    made = await exports.export(settings, tmp_path / "b", rebuild=True, **given)
    await recorded.execute(
        "DELETE FROM interactions WHERE user_key = (SELECT min(user_key) FROM interactions)"
    )
    with pytest.raises(exports.ExportError, match="not in the database any more"):
        await exports.check(recorded, settings, made, rebuild=True)
    (tmp_path / "c").mkdir()
    with pytest.raises(exports.ExportError, match="holds no whole export"):
        exports.load(tmp_path / "c")


async def test_files_are_for_ray(client: Client) -> None:
    asked = tpb.TriggerTrainingRequest(export_folder="/shared/week-12")
    failure = await failure_of(client.training.TriggerTraining(asked, metadata=ADMIN))
    assert failure.violations == {"export_folder": "is for engine TRAINING_ENGINE_RAY"}


async def test_the_database_knows_the_cells(recorded: asyncpg.Connection) -> None:
    traits = np.random.default_rng(2).uniform(0, 100, (300, 5)).astype(np.float32)
    traits[:60] = np.random.default_rng(3).choice(
        np.array([0, 100, 20, 40, 60, 80, 100 / 3, 200 / 3, 59.999996], np.float32), (60, 5)
    )
    for bins in (1, 3, 5, 7, 10):
        space = StateSpace(bins=bins)
        query = f"""
            SELECT {cell_expression(space)} FROM unnest($1::real[], $2::real[], $3::real[],
            $4::real[], $5::real[]) WITH ORDINALITY AS i
            (openness, conscientiousness, extraversion, agreeableness, neuroticism, n) ORDER BY n
        """
        rows = await recorded.fetch(query, *traits.T.tolist())
        assert [row[0] for row in rows] == space.cells(traits.astype(np.float64)).tolist()


def test_cells_are_dealt_out_by_weight() -> None:
    assert split_cells({}, 243, 4) == [Shard(NO_CELL, 243)]
    assert split_cells({5: 10}, 243, 1) == [Shard(NO_CELL, 243)]
    weights = dict.fromkeys(range(100), 1) | {50: 300}
    shards = split_cells(weights, 243, 4)
    assert shards[0].low == NO_CELL and shards[-1].high == 243
    held = [sum(n for cell, n in weights.items() if s.low <= cell < s.high) for s in shards]
    assert sum(held) == 399 and max(held) <= 350
    even = split_cells(dict.fromkeys(range(100), 3), 100, 4)
    assert [shard.high - max(shard.low, 0) for shard in even] == pytest.approx([25] * 4, abs=1)


@pytest.mark.parametrize("algorithm", ["lin_ucb", "dqn"])
async def test_what_learns_no_table_is_not_dealt_out(client: Client, algorithm: str) -> None:
    asked = tpb.TriggerTrainingRequest(
        algorithm=algorithm, mode=tpb.TRAINING_MODE_REBUILD, engine=tpb.TRAINING_ENGINE_RAY
    )
    failure = await failure_of(client.training.TriggerTraining(asked, metadata=ADMIN))
    assert failure.violations == {
        "engine": f"Ray deals out tables, which {algorithm} does not learn"
    }


async def test_a_server_without_ray_says_so(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recparams_server.services.training.find_spec", lambda _: None)
    asked = tpb.TriggerTrainingRequest(engine=tpb.TRAINING_ENGINE_RAY)
    failure = await failure_of(client.training.TriggerTraining(asked, metadata=ADMIN))
    assert failure.reason == "ENGINE_MISSING"
    assert "recparams[ray]" in failure.message


@with_ray
@pytest.mark.timeout(300)
async def test_ray_trains_the_same_version_even_where_a_worker_is_killed(
    client: Client, recorded: asyncpg.Connection, settings: Settings, tmp_path: Path
) -> None:
    here = await train(client, mode=tpb.TRAINING_MODE_REBUILD, days_back=60)
    killed: list[str] = []

    async def kill_one() -> None:
        while not killed:
            for process in psutil.process_iter(["cmdline"]):
                name = " ".join(process.info["cmdline"] or ())
                if name.startswith("ray::_read_part"):
                    process.kill()
                    killed.append(name)
                    break
            await asyncio.sleep(0.01)

    killing = asyncio.create_task(kill_one())
    there = await train(
        client, mode=tpb.TRAINING_MODE_REBUILD, days_back=60, engine=tpb.TRAINING_ENGINE_RAY
    )
    killing.cancel()
    assert there.status == tpb.TRAINING_RUN_STATUS_COMPLETED, there.error
    assert killed
    assert there.interactions_trained == here.interactions_trained
    await exports.export(
        settings,
        tmp_path / "export",
        days_back=60,
        rebuild=True,
        shards=4,
        on_file=lambda *_: None,
    )
    from_files = await train(
        client,
        mode=tpb.TRAINING_MODE_REBUILD,
        engine=tpb.TRAINING_ENGINE_RAY,
        export_folder=str(tmp_path / "export"),
    )
    assert from_files.status == tpb.TRAINING_RUN_STATUS_COMPLETED, from_files.error
    runs = here, there, from_files
    one, *others = [await models.load_table(recorded, run.model_version) for run in runs]
    for other in others:
        assert one.q.tobytes() == other.q.tobytes()
        assert one.visits.tobytes() == other.visits.tobytes()
