"""Exports for analysis: what is recorded, with names, and as the trainer reads it."""

import asyncio
import csv
import gzip
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest
from click.testing import CliRunner, Result

import recparams_rl as rl
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.interaction_log import InteractionLog
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.log_files import FORMATS
from recparams_rl.state import TRAITS
from recparams_server.cli import main
from recparams_server.jobs import analysis
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training.reading import Reading, due_transitions, read
from recparams_server.settings import Settings
from recparams_server.store import analysis as store
from recparams_server.store.columns import POSTGRES_EPOCH
from recparams_server.store.training import EVER
from tests.support import Client, in_process, logged, record
from tests.trust import likes_high_energy, live

PEOPLE = [f"person, {n}" for n in range(6)]
LONG_AGO = datetime.now(UTC) - timedelta(days=9)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    changes = {"bins": 3, "exploration": 0.5, "reward_skip": -0.7, "objective_novelty": 0.2}
    return in_process(database_url, tmp_path, random_seed=1, **changes)


@pytest.fixture
async def recorded(client: Client, db: asyncpg.Connection) -> asyncpg.Connection:
    """Decisions with tokens, and some without, one of them by somebody without a profile."""
    await live(client, PEOPLE, likes_high_energy)
    stranger = logged("stranger", 'the "stranger"', completion_rate=0.1, mood_change=-0.25)
    stranger.logged_decision.ClearField("personality")
    later = logged("later", "profile comes later")
    later.logged_decision.ClearField("personality")
    await record(client, stranger, later, logged("old", PEOPLE[0], occurred_at=LONG_AGO))
    profile = types.PersonalityProfile(
        openness=1.5, conscientiousness=2, extraversion=3, agreeableness=4, neuroticism=5
    )
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(
            profiles=[pb.UserPersonalityProfile(user_id="profile comes later", personality=profile)]
        )
    )
    # As where the two were stored at the same time and did not see each other.
    await db.execute(
        f"UPDATE interactions SET ({', '.join(TRAITS)}) = (SELECT {', '.join(['NULL::real'] * 5)}) "
        "WHERE interaction_id = 'later'"
    )
    return db


async def exported(settings: Settings, file: Path, **options: Any) -> InteractionLog:
    given = {"days_back": None, "user_ids": False, "on_rows": lambda *_: None, **options}
    written = await analysis.export(settings, file, **given)
    log = rl.load_log(file)
    assert len(log) == written
    assert unfinished(file.parent) == []
    return log


def unfinished(folder: Path) -> list[Path]:
    """What was written beside a file and is still there."""
    return list(folder.glob("*.part"))


async def test_a_file_has_what_is_recorded(
    settings: Settings, recorded: asyncpg.Connection, tmp_path: Path
) -> None:
    log = await exported(settings, tmp_path / "all.csv", user_ids=True)
    rows = await recorded.fetch("SELECT * FROM interactions_named ORDER BY id")
    with (tmp_path / "all.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(log) == len(rows) > len(PEOPLE)
    numbers = (*TRAITS, "completion_rate", "mood_change", "propensity")
    words = "content_type", "mood", "time_of_day", "energy", "diversity", "novelty"
    flags = {"like": "liked", "skip": "skipped", "share": "shared", "dislike": "disliked"}
    later = [row["interaction_id"] for row in rows].index("later")
    for place, (one, row) in enumerate(zip(found, rows, strict=True)):
        assert (int(one["id"]), one["user"]) == (row["id"], row["user_id"])
        assert datetime.fromisoformat(one["occurred_at"]) == row["occurred_at"]
        assert {name: one[name] for name in words} == {name: row[name] for name in words}
        for name, flag in flags.items():
            assert one[name] == str(row[flag]).lower()
        for name in numbers:
            if place != later or name not in TRAITS:
                assert (np.float32(one[name]) if one[name] else None) == row[name], name
        assert one["arm"] == (row["policy_arm"] or "")
        assert one["version"] == ("" if row["model_version"] is None else "0")
        assert (one["source"] in ("rule_based", "exploration")) == bool(one["arm"])
        assert float(one["reward"]) == pytest.approx(
            float(one["engagement"]) + 0.2 * float(row["novelty_objective"])
        )
    assert log.traits[later].tolist() == [1.5, 2, 3, 4, 5]
    assert {one["source"] for one in found} == {"rule_based", "exploration", ""}
    assert (
        await recorded.fetchval(
            "SELECT openness FROM interactions WHERE id = $1", rows[later]["id"]
        )
        is None
    )


async def test_the_log_is_what_the_trainer_reads(
    settings: Settings, recorded: asyncpg.Connection, tmp_path: Path
) -> None:
    """All but who a person is: numbers of the database there, of the file here."""
    log = await exported(settings, tmp_path / "log.csv.gz")
    request = RunRequest(
        rebuild=True,
        days_back=30,
        min_interactions_per_user=1,
        hyperparameters=Hyperparameters(settling_seconds=0.0),
        as_of=datetime.now(UTC),
        activate=False,
        objectives=settings.objectives(),
    )
    reading = Reading(request, EVER, int(log.id.max()), traits=True)
    columns = await read(recorded, settings, reading, lambda _: None)
    order = np.argsort(columns.interactions.id)
    theirs, mine = columns.interactions[order], log.interactions(settings.space())
    filled_in = np.isnan(theirs.traits).any(axis=1) & ~np.isnan(mine.traits).any(axis=1)
    assert np.count_nonzero(filled_in) == 1
    for name in ("id", "action", "reward"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
    for name in ("state", "traits"):
        one, other = (getattr(of, name)[~filled_in] for of in (mine, theirs))
        assert np.array_equal(one, other, equal_nan=True), name
    since = np.datetime64(POSTGRES_EPOCH.replace(tzinfo=None)).astype("datetime64[us]")
    assert np.array_equal(mine.time - since.astype(np.int64), theirs.time)
    assert np.array_equal(log.engagement, columns.engagement[order])
    assert np.array_equal(log.propensity, columns.pscore[order], equal_nan=True)
    assert len(set(zip(mine.user.tolist(), theirs.user.tolist(), strict=True))) == len(
        set(theirs.user.tolist())
    )
    batch = due_transitions(theirs, request, settings.space().n_contexts)
    learned = log[~filled_in].transitions(settings.space())
    assert len(learned) == len(batch.transitions)
    for name in ("state", "action", "reward", "next_state"):
        assert np.array_equal(getattr(learned, name), getattr(batch.transitions, name)), name

    usable = log.evaluation_log(settings.serving_space(), exploration=0.5)
    assert len(usable) == np.count_nonzero(~np.isnan(log.propensity))
    assert np.array_equal(
        np.unique(usable.pscore), np.unique(log.propensity[~np.isnan(log.propensity)])
    )


async def test_every_format_has_the_same(
    settings: Settings,
    recorded: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "ROWS_AT_A_TIME", 4)
    steps: list[tuple[int, int]] = []
    logs = [
        await exported(settings, tmp_path / f"a{end}", on_rows=lambda *step: steps.append(step))
        for end in FORMATS
        if end != ".parquet" or find_spec("pyarrow")
    ]
    n = len(logs[0])
    assert steps[:2] == [(4, n), (8, n)] and steps[-1] == (n, n)
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes()).count(b"\n") == n + 1
    for log in logs[1:]:
        for name, column in vars(logs[0]).items():
            other = getattr(log, name)
            assert column.dtype.kind == other.dtype.kind, name
            if name != "user_names":
                assert np.array_equal(column, other, equal_nan=column.dtype.kind == "f"), name
    # Hashes: of this file alone, one for each person.
    names = [set(log.user_names.tolist()) for log in logs]
    assert len(names[0]) == len(PEOPLE) + 2
    assert not names[0] & names[1]
    assert all(len(name) == 20 and set(name) <= set("0123456789abcdef") for name in names[0])
    assert "person" not in (tmp_path / "a.csv").read_text()


async def test_a_window_and_a_failure_in_the_middle(
    settings: Settings, recorded: asyncpg.Connection, tmp_path: Path
) -> None:
    file = tmp_path / "week.csv"
    log = await exported(settings, file, days_back=7)
    total = await recorded.fetchval("SELECT count(*) FROM interactions")
    assert len(log) == total - 1
    before = file.read_bytes()

    def fail(*_: int) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        await exported(settings, file, on_rows=fail)
    assert file.read_bytes() == before
    assert unfinished(tmp_path) == []
    with pytest.raises(analysis.FileError, match="nowhere"):
        await exported(settings, tmp_path / "nowhere" / "a.csv")


async def test_the_command_says_what_it_did_or_why_not(
    postgres: Any,
    database_url: str,
    db: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def export(*options: str, url: str = database_url) -> Result:
        command = ["interactions", "export", *options, "--database-url", url]
        return await asyncio.to_thread(CliRunner().invoke, main, command)

    file = tmp_path / "log.csv"
    for_analysis = "--for", "analysis", "--into", str(file)
    done = await export(*for_analysis)
    assert (done.exit_code, done.output) == (
        1,
        "recparams: nothing to export: no interactions were recorded\n",
    )
    await db.execute("INSERT INTO users (user_id) VALUES ('ada')")
    await db.execute("SELECT ensure_interactions_partition($1)", LONG_AGO)
    await db.execute(
        "INSERT INTO interactions (user_key, interaction_id, occurred_at, reactions, content_type, "
        "mood, time_of_day, action) SELECT user_key, 'one', $1, 1, 1, 2, 3, 26 FROM users",
        LONG_AGO,
    )
    done = await export(*for_analysis, "--days", "7")
    assert "nothing to export: no interactions were recorded in the last 7 days" in done.output
    assert not file.exists()
    done = await export(*for_analysis, "--user-ids")
    assert (done.exit_code, done.output) == (0, f"1 interactions: {file}\n")
    log = rl.load_log(file)
    assert (log.user_names.tolist(), log.mood.tolist()) == (["ada"], ["happy"])
    assert log.action.tolist() == [26] and np.isnan(log.propensity).all()

    away = await export(*for_analysis, url="postgresql://127.0.0.1:1/x")
    assert away.exit_code == 4
    other = await export(*for_analysis, url=postgres.get_uri())
    assert other.exit_code == 1 and "the database has no tables of recparams" in other.output
    for options, said in (
        (("--for", "analysis", "--into", str(tmp_path / "log.txt")), ".csv, .csv.gz, .parquet"),
        (("--for", "analysis", "--into", str(tmp_path)), "must be a file"),
        ((*for_analysis, "--mode", "rebuild"), "--mode and --files are for training"),
        (("--into", str(tmp_path / "x"), "--user-ids"), "--user-ids is for analysis"),
        (("--into", str(file)), "is a file"),
    ):
        wrong = await export(*options)
        assert wrong.exit_code == 2 and said in wrong.output, wrong.output
    monkeypatch.setattr("recparams_server.cli.interactions.find_spec", lambda _: None)
    missing = await export("--for", "analysis", "--into", str(tmp_path / "log.parquet"))
    assert missing.exit_code == 1 and "pip install 'recparams[parquet]'" in missing.output
