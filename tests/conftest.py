"""A real Postgres for the session, a fresh database for each test, and a real server."""

import asyncio
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recparams_server.app import App
from recparams_server.jobs.forked import Template
from recparams_server.settings import Settings
from recparams_server.store.embedded import start_postgres
from recparams_server.store.migration import migrate
from tests.faults import OwnPostgres
from tests.support import (
    Client,
    ServerProcess,
    connect,
    in_process,
    own_folder,
    wait_serving,
)
from tests.watchdog import Watchdog

TEMPLATE = "recparams_template"
FROM_TEMPLATE = f"TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"
UNSAFE = ("fsync", "full_page_writes", "synchronous_commit")
"""Settings of Postgres that matter where the machine crashes, which is nothing we test."""

LONGEST = (
    "test_benchmarks",
    "test_demo",
    "test_documents",
    "test_exactly_once",
    "test_rollout",
    "test_outage",
    "test_replicas",
    "test_cli",
    "test_trust",
    "test_training_service",
    "test_soak",
    "test_ray",
    "test_cli_trust",
    "test_forgetting",
    "test_evaluation_coverage",
    "test_sequential",
    "test_limits",
    "test_compare",
    "test_model_service",
)
"""Test files that take longest, in the order in which they begin."""


def pytest_configure(config: pytest.Config) -> None:
    """Bounds every test from here on."""
    config.pluginmanager.register(Watchdog(float(config.getini("timeout"))))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the longest files, so that all workers end at about the same time."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> None:
    """Settings of the shell must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("RECPARAMS_") or name == "DATABASE_URL":
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Shells have background jobs ignore Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """An embedded Postgres with a migrated template database."""

    async def prepare() -> None:
        admin = await asyncpg.connect(server.get_uri())
        for name in UNSAFE:
            await admin.execute(f"ALTER SYSTEM SET {name} = off")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.execute(f"CREATE DATABASE {TEMPLATE}")
        await admin.close()
        await migrate(server.get_uri(database=TEMPLATE))

    with own_folder() as folder:
        server = start_postgres(folder / "postgres")
        asyncio.run(prepare())
        yield server
        server.stop()


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A Postgres that the tests of a module may stop, freeze and start."""
    with own_folder() as folder:
        server = OwnPostgres(folder / "pg")
        yield server
        server.stop()


@pytest.fixture
def private_folder() -> Iterator[Path]:
    """An `own_folder`."""
    with own_folder() as folder:
        yield folder


@pytest.fixture
async def database_url(postgres: Any) -> AsyncIterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres.get_uri())
    await admin.execute(f"CREATE DATABASE {name} {FROM_TEMPLATE}")
    yield postgres.get_uri(database=name)
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of the server in `app`; a test module may override this fixture."""
    return in_process(database_url, tmp_path, gates="report")


@pytest.fixture(scope="session")
def template() -> Iterator[Template]:
    """What the jobs of all servers within this process are forked from."""
    shared = Template()
    yield shared
    shared.close()


@pytest.fixture
async def app(settings: Settings, template: Template) -> AsyncIterator[App]:
    """A server within the test's own event loop."""
    running = App(settings, template=template)
    await running.start()
    yield running
    await running.stop()


@pytest.fixture
async def client(app: App) -> AsyncIterator[Client]:
    """A client of `app`, which is SERVING."""
    async with connect(f"127.0.0.1:{app.port}") as connected:
        await wait_serving(connected)
        yield connected


@pytest.fixture
def start_server(database_url: str, tmp_path: Path) -> Iterator[Any]:
    """Starts server processes on the test's database; they are killed at its end."""
    started: list[ServerProcess] = []

    def start(**settings: object) -> ServerProcess:
        log = tmp_path / f"server-{len(started)}.log"
        url = str(settings.pop("database_url", database_url))
        started.append(ServerProcess(url, log, **{"data_dir": tmp_path, **settings}))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()
