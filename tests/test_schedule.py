"""Training that runs by itself: when, by whom, and not twice."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest

from recparams_server.app import App
from recparams_server.background import training_schedule
from recparams_server.jobs.forked import Template
from recparams_server.settings import Settings
from recparams_server.settings.schedule import Schedule
from tests.faults import SMALL, eventually, trigger
from tests.support import Client, connect, wait_serving


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_a_schedule_that_is_wrong_does_not_spin() -> None:
    """Were an instant in the past, or the clock set, others would still get their turn."""
    asked = 0

    class Past:
        def latest(self, now: datetime) -> datetime:
            return now - timedelta(days=2)

        def following(self, now: datetime) -> datetime:
            nonlocal asked
            asked += 1
            return now - timedelta(hours=1)

    grace, unused = timedelta(hours=1), cast(Any, None)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1.5):
            schedule = cast(Schedule, Past())
            await training_schedule.train_on_schedule(schedule, grace, unused, unused)
    assert 1 <= asked <= 2


def test_an_empty_schedule_is_none() -> None:
    assert Settings(schedule="").training_schedule() is None


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_schedule, "RETRY_SECONDS", 0.1)


@pytest.fixture
def scheduled(settings: Settings, template: Template) -> Any:
    """Runs servers with a schedule, one on one database."""

    @contextlib.asynccontextmanager
    async def start(count: int, schedule: str, **changes: Any) -> AsyncIterator[list[App]]:
        apps = [
            App(
                settings.model_copy(update={**SMALL, "schedule": schedule, **changes}),
                template=template,
            )
            for _ in range(count)
        ]
        try:
            await asyncio.gather(*(app.start() for app in apps))
            for app in apps:
                async with connect(f"127.0.0.1:{app.port}") as client:
                    await wait_serving(client)
            yield apps
        finally:
            await asyncio.gather(*(app.stop() for app in apps))

    return start


async def request_ids(db: asyncpg.Connection) -> list[str]:
    rows = await db.fetch("SELECT request_id FROM system_tasks ORDER BY id")
    return [row["request_id"] for row in rows]


def minutes_ago(minutes: int) -> tuple[str, str]:
    """A daily cron expression whose latest instant was so long ago, and its request id."""
    instant = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=minutes)
    request_id = f"schedule-{instant:%Y-%m-%dT%H:%M:%SZ}"
    return f"{instant.minute} {instant.hour} * * *", request_id


async def test_a_missed_instant_is_made_up_for_once(db: asyncpg.Connection, scheduled: Any) -> None:
    cron, request_id = minutes_ago(10)

    async def ended() -> bool:
        return bool(await db.fetchval("SELECT count(finished_at) FROM system_tasks"))

    async with scheduled(3, cron):
        await eventually(ended)
    async with scheduled(1, cron):
        await asyncio.sleep(0.5)
    assert await request_ids(db) == [request_id]
    row = await db.fetchrow("SELECT status, metadata FROM system_tasks")
    assert row["status"] == "completed"
    request = json.loads(row["metadata"])["request"]
    assert not request["rebuild"] and request["activate"] and request["days_back"] is None


async def test_after_the_grace_it_is_left_out(db: asyncpg.Connection, scheduled: Any) -> None:
    async with scheduled(1, minutes_ago(10)[0], schedule_grace_seconds=60):
        await asyncio.sleep(0.5)
    assert await request_ids(db) == []


async def test_replicas_start_each_instant_once(db: asyncpg.Connection, scheduled: Any) -> None:
    async def two_runs() -> bool:
        return len(await request_ids(db)) >= 2

    async with scheduled(2, "2s"):
        await eventually(two_runs)
    ids = await request_ids(db)
    assert len(set(ids)) == len(ids)
    instants = [at(name.removeprefix("schedule-").removesuffix("Z")) for name in ids]
    assert all(instant.timestamp() % 2 == 0 for instant in instants)
    assert instants == sorted(instants)


async def test_it_waits_for_a_run_under_way(
    db: asyncpg.Connection, client: Client, scheduled: Any
) -> None:
    cron, request_id = minutes_ago(1)
    await db.execute("SELECT pg_advisory_lock_shared(7270001)")
    running = await trigger(client, request_id="by-hand")
    async with scheduled(1, cron):
        await asyncio.sleep(0.5)
        assert await request_ids(db) == ["by-hand"]
        await db.execute("SELECT pg_advisory_unlock_all()")

        async def both() -> bool:
            return await request_ids(db) == ["by-hand", request_id]

        await eventually(both)
    assert running == 1
