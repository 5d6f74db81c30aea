"""Connections through a pooler: session mode works, and any other ends the start with a reason."""

import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from benchmarks.soak.pooler import PROGRAM, PgBouncer
from recparams.v1 import models_pb2 as mpb
from recparams_server.store.errors import UnusableDatabaseError
from recparams_server.store.sessions import check_sessions
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, OwnPostgres, eventually
from tests.processes import run
from tests.support import (
    ADMIN,
    ROOT,
    connect,
    environment,
    logged,
    record,
    request,
    train,
    wait_serving,
)

needs_pgbouncer = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
DATABASE = "recparams"
MODES = ("transaction", "statement")
WORKERS = (1, 2)


@pytest.fixture
async def direct(own_postgres: OwnPostgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection past the pooler to a new database."""
    admin = await asyncpg.connect(own_postgres.uri("postgres"))
    await admin.execute(f"CREATE DATABASE {DATABASE}")
    connection = await asyncpg.connect(own_postgres.uri(DATABASE))
    yield connection
    await connection.close()
    await admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
    await admin.close()


@pytest.fixture
def pooler(own_postgres: OwnPostgres, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts a PgBouncer in a mode and returns the URL through it."""
    started: list[PgBouncer] = []

    def start(mode: str) -> str:
        folder = Path(own_postgres.socket_folder)
        readable = Path(tempfile.mkdtemp(prefix="recparams-", dir=tmp_path))
        one = PgBouncer(
            readable,
            free_port("127.0.0.1", 0),
            f"host={folder} user=postgres",
            mode,
            folder.owner(),
        )
        started.append(one)
        one.start()
        return f"postgresql://postgres@127.0.0.1:{one.port}/{DATABASE}?sslmode=disable"

    yield start
    for one in started:
        one.stop()


@needs_pgbouncer
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", WORKERS)
async def test_a_pooler_that_shares_sessions_ends_the_start(
    direct: asyncpg.Connection,
    pooler: Callable[[str], str],
    tmp_path: Path,
    mode: str,
    workers: int,
) -> None:
    env = environment(pooler(mode), port=0, data_dir=tmp_path, workers=workers)
    serve = (sys.executable, "-m", "recparams_server.cli", "serve")
    done = await asyncio.to_thread(run, *serve, env=env, cwd=ROOT)
    assert done.returncode == 1
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert await direct.fetchval(tables) == 0
    last = done.stderr.splitlines()[-1]
    assert last.startswith("recparams: the database is reached through a pooler")
    assert "session mode" in last
    assert "Traceback" not in done.stderr


@needs_pgbouncer
def test_a_migration_through_such_a_pooler_says_so(
    direct: asyncpg.Connection, pooler: Callable[[str], str]
) -> None:
    url = pooler("transaction")
    done = run(
        sys.executable, "-m", "recparams_server.cli", "migrate", "--database-url", url, cwd=ROOT
    )
    assert done.returncode == 1
    assert "session mode" in done.stderr


@needs_pgbouncer
async def test_all_works_through_a_pooler_in_session_mode(
    direct: asyncpg.Connection, pooler: Callable[[str], str], start_server: Any
) -> None:
    server = start_server(database_url=pooler("session"), reload_poll_seconds=3600, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        assert (await record(client, *(logged(f"i{n}", "ada") for n in range(20)))).recorded == 20
        run = await train(client)
        assert run.interactions_trained == 20

        async def serves() -> bool:
            answer = await client.recommendation.GetRecommendationParams(request())
            return bool(answer.model_version == run.model_version)

        await eventually(serves, 10)
        await client.models.RollbackModel(mpb.RollbackModelRequest(), metadata=ADMIN)
    assert server.terminate() == 0

    async def no_locks_are_left() -> bool:
        return not await direct.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        )

    await eventually(no_locks_are_left, 10)


class FakePooler:
    """Sessions that are dealt out anew for each statement."""

    def __init__(self, pids: Sequence[int], choose: Callable[[list[int]], int]) -> None:
        self._idle = list(pids)
        self._choose = choose

    async def connect(self, url: str, **_: object) -> "FakePooler":
        return self

    async def fetchval(self, query: str) -> int:
        pid = self._idle.pop(self._choose(self._idle))
        self._idle.append(pid)
        return pid

    def terminate(self) -> None:
        """As of a connection."""


DRAW = random.Random(1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize(
    "choose",
    [lambda idle: -1, lambda idle: 0, lambda idle: DRAW.randrange(len(idle))],
    ids=["the last used", "in turns", "by chance"],
)
async def test_shared_sessions_are_noticed(
    monkeypatch: pytest.MonkeyPatch, size: int, choose: Callable[[list[int]], int]
) -> None:
    monkeypatch.setattr(asyncpg, "connect", FakePooler(range(size), choose).connect)
    with pytest.raises(UnusableDatabaseError, match="session mode"):
        await check_sessions("postgresql://db/x")


@pytest.mark.parametrize(
    "error", [asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError]
)
async def test_lost_statements_are_noticed(
    monkeypatch: pytest.MonkeyPatch, error: type[asyncpg.PostgresError]
) -> None:
    def fail(idle: list[int]) -> int:
        raise error("of another connection")

    monkeypatch.setattr(asyncpg, "connect", FakePooler([1], fail).connect)
    with pytest.raises(UnusableDatabaseError, match="session mode"):
        await check_sessions("postgresql://db/x")


async def test_sessions_of_their_own_pass(database_url: str) -> None:
    for _ in range(3):
        await check_sessions(database_url)
