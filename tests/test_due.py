"""What is due: whatever no run has trained, in whatever order and however late it arrives."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from recparams.v1 import system_pb2 as spb
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import TRAITS
from recparams_server.contract.interaction import to_microseconds
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training.reading import Reading, due_transitions, read, window_start_of
from recparams_server.settings import Settings
from recparams_server.store import interactions, tasks, training
from recparams_server.store.database import Pool, create_pool
from tests.faults import SMALL, SPACE
from tests.support import Client, in_process, logged, new_interactions, record, train
from tests.trust import LIKE

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(name="server_settings")
def server_settings_(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    created = await create_pool(database_url, 2)
    yield created
    await created.close()


@dataclass(frozen=True)
class Run:
    """A training run: incremental or from nothing, of all that is due or of a window."""

    rebuild: bool
    days_back: int | None
    least: int


Arrivals = list[tuple[int, int]]
"""(person, days ago) of interactions that are recorded together."""

ARRIVALS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=6)
RUNS = st.builds(
    Run, st.sampled_from([False, False, True]), st.none() | st.integers(1, 15), st.integers(1, 4)
)


@dataclass
class Ledger:
    """What was acknowledged and what was trained, as a caller and a trainer know it.

    Attributes:
        acknowledged: ids of all interactions.
        ever: ids that any run has trained.
        line: ids in the newest table: all since the last rebuild.
    """

    db: asyncpg.Connection
    pool: Pool
    settings: Settings
    acknowledged: set[int] = field(default_factory=set)
    ever: set[int] = field(default_factory=set)
    line: set[int] = field(default_factory=set)
    _names: Any = field(default_factory=count)

    async def clear(self) -> None:
        await self.db.execute(
            "TRUNCATE users, interactions, interaction_keys, system_tasks CASCADE"
        )

    async def record(self, arrivals: Arrivals) -> None:
        scores = dict(zip(TRAITS, (10.0, 20.0, 30.0, 40.0, 50.0), strict=True))
        new = new_interactions(
            [f"i{next(self._names)}" for _ in arrivals],
            [f"u{person}" for person, _ in arrivals],
            occurred_at=[to_microseconds(NOW - timedelta(days=days)) for _, days in arrivals],
            reactions=1,
            content_type=1,
            mood=1,
            time_of_day=3,
            action=3,
            **scores,
        )
        assert len(await interactions.record(self.pool, new)) == len(new)
        rows = await self.db.fetch("SELECT id FROM interactions")
        self.acknowledged = {row["id"] for row in rows}

    async def due(self) -> list[int]:
        """Ids that a run would read now."""
        query = training.query(False, "i.id")
        rows = await self.db.fetch(query, await training.snapshot(self.db), training.EVER)
        return sorted(row["id"] for row in rows)

    async def run(self, run: Run) -> int:
        """Reads, chooses and settles as a run does, and returns how many it says are waiting."""
        request = RunRequest(
            rebuild=run.rebuild,
            days_back=run.days_back,
            min_interactions_per_user=run.least,
            hyperparameters=Hyperparameters(settling_seconds=0.0),
            as_of=NOW + timedelta(seconds=1),
            activate=False,
        )
        through = await training.snapshot(self.db)
        start = window_start_of(self.settings, request)
        columns = await read(
            self.db, self.settings, Reading(request, start, through, False), lambda _: None
        )
        batch = due_transitions(columns.interactions, request, SPACE.n_contexts)
        trained = columns.interactions.id[batch.rows].tolist()
        assert len(set(trained)) == len(trained)
        if run.rebuild and not trained:
            return len(await self.due())
        if run.rebuild:
            self.line = set()
        assert not self.line & set(trained), "trained twice"
        self.line |= set(trained)
        self.ever |= set(trained)
        async with self.db.transaction():
            waiting = await training.settle(self.db, batch, start, rebuild=run.rebuild)
            all_due = training.reads_all_due(start, run.rebuild)
            task = await tasks.create(self.db, f"run-{next(self._names)}", {})
            result = {
                "interactions_read_through": through if all_due else None,
                "users_trained": len(batch.users),
                "interactions_trained": len(trained),
            }
            await training.complete(self.db, task, "stored", json.dumps({"training": result}))
        return waiting


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# A rebuild of a window stops before what arrived late and was trained earlier.
@example(
    steps=[
        [(0, 0), (0, 7)],
        Run(rebuild=False, days_back=None, least=1),
        [(0, 7)],
        Run(rebuild=True, days_back=None, least=1),
        Run(rebuild=False, days_back=None, least=2),
    ]
)
@given(steps=st.lists(ARRIVALS | RUNS, min_size=2, max_size=9))
async def test_trained_and_waiting_are_all_that_was_acknowledged(
    db: asyncpg.Connection, pool: Pool, server_settings: Settings, steps: list[Arrivals | Run]
) -> None:
    ledger = Ledger(db, pool, server_settings)
    await ledger.clear()
    for step in steps:
        if isinstance(step, Run):
            waiting = await ledger.run(step)
            due = await ledger.due()
            assert waiting == len(due) == len(set(due))
            assert not ledger.line & set(due)
        else:
            await ledger.record(step)
        assert ledger.ever | set(await ledger.due()) == ledger.acknowledged
    assert await ledger.run(Run(False, None, 1)) == 0
    assert ledger.ever == ledger.acknowledged


@pytest.fixture(name="settings")
def settings_(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, "min_interactions_per_user": 5})


async def record_at(client: Client, name: str, *days: float) -> None:
    """Records reactions of one person, each so many days ago."""
    await record(
        client,
        *(
            logged(f"{name}-{n}", "ada", LIKE, occurred_at=NOW - timedelta(days=ago))
            for n, ago in enumerate(days)
        ),
    )


async def test_what_happened_before_what_is_trained_is_trained_too(client: Client) -> None:
    await record_at(client, "first", *[2.0] * 5)
    await train(client)
    await record_at(client, "second", *[8.0] * 6, *[1.0] * 6)
    run = await train(client)
    assert (run.interactions_trained, run.interactions_waiting) == (12, 0)


async def test_what_happened_long_ago_is_trained(client: Client) -> None:
    await record_at(client, "late", *[8.0] * 6)
    run = await train(client)
    assert (run.interactions_trained, run.interactions_waiting) == (6, 0)


async def test_a_person_of_few_interactions_waits_for_weeks_and_loses_none(client: Client) -> None:
    trained = 0
    for days in (28, 21, 14, 7, 1):
        await record_at(client, f"{days}-days-ago", *[days + 0.5] * 3)
        run = await train(client, as_of={"seconds": int((NOW - timedelta(days=days)).timestamp())})
        trained += run.interactions_trained
    await record_at(client, "at-once", *[0.1] * 5)
    run = await train(client)
    assert trained + run.interactions_trained == 20
    assert run.interactions_waiting == 0


async def test_what_a_window_leaves_out_waits_and_is_shown(
    client: Client, db: asyncpg.Connection
) -> None:
    await record_at(client, "mixed", *[8.0] * 6, *[1.0] * 6)
    windowed = await train(client, days_back=7)
    assert (windowed.interactions_trained, windowed.interactions_waiting) == (6, 6)
    health = await client.system.GetSystemHealth(spb.GetSystemHealthRequest())
    assert health.queue.interactions_waiting == 6
    named = "SELECT count(*) FROM interactions_named WHERE trained"
    assert await db.fetchval(named) == 6
    assert (await train(client)).interactions_trained == 6
    assert await db.fetchval(named) == 12
