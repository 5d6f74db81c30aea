"""Errors that pass by themselves or by an administrator's hand are not taken for bugs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams_server.settings import Settings
from recparams_server.store.errors import STORE_ERRORS
from tests.faults import SMALL, eventually
from tests.support import Client, failure_of, in_process, logged, record, request

Admin = asyncpg.Connection
PASSING = ("08", "28", "3D", "40", "53", "55", "57", "58")
PASSING_CODES = ("25006", "25P03", "25P04", "42P01")
ERRORS = [
    kind
    for kind in vars(asyncpg).values()
    if isinstance(kind, type) and issubclass(kind, asyncpg.PostgresError) and kind.sqlstate
]


def test_errors_are_told_apart_by_their_sqlstate() -> None:
    assert len(ERRORS) > 200
    for kind in ERRORS:
        passes = kind.sqlstate.startswith(PASSING) or kind.sqlstate in PASSING_CODES
        assert issubclass(kind, STORE_ERRORS) == passes, (kind, kind.sqlstate)
    for kind in (
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.LockNotAvailableError,
        asyncpg.InvalidPasswordError,
        asyncpg.InvalidCatalogNameError,
    ):
        assert issubclass(kind, STORE_ERRORS)
    for kind in (asyncpg.UniqueViolationError, asyncpg.PostgresSyntaxError):
        assert not issubclass(kind, STORE_ERRORS)


@pytest.fixture
def role(database_url: str) -> str:
    """A login of this test's own, by the name of its database."""
    return urlsplit(database_url).path[1:]


@pytest.fixture
async def admin(postgres: Any, role: str) -> AsyncIterator[Admin]:
    connection = await asyncpg.connect(postgres.get_uri())
    await connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
    yield connection
    await connection.execute(f"ALTER ROLE {role} RENAME TO gone_{role}")
    await connection.close()


@pytest.fixture
def settings(database_url: str, tmp_path: Path, admin: Admin, role: str) -> Settings:
    (folder,) = parse_qs(urlsplit(database_url).query)["host"]
    url = f"postgresql://{role}@/{role}?host={folder}"
    return in_process(url, tmp_path, profile_cache_seconds=0.1, **SMALL)


async def cut(admin: Admin, role: str) -> None:
    await admin.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
    )


@contextlib.asynccontextmanager
async def login_refused(admin: Admin, role: str, url: str) -> AsyncIterator[None]:
    await admin.execute(f"ALTER ROLE {role} NOLOGIN")
    await cut(admin, role)
    yield
    await admin.execute(f"ALTER ROLE {role} LOGIN")


@contextlib.asynccontextmanager
async def not_accepting(admin: Admin, role: str, url: str) -> AsyncIterator[None]:
    await admin.execute(f"ALTER DATABASE {role} ALLOW_CONNECTIONS false")
    await cut(admin, role)
    yield
    await admin.execute(f"ALTER DATABASE {role} ALLOW_CONNECTIONS true")


@contextlib.asynccontextmanager
async def renamed(admin: Admin, role: str, url: str) -> AsyncIterator[None]:
    await admin.execute(f"ALTER ROLE {role} NOLOGIN")
    await cut(admin, role)
    await asyncio.sleep(0.2)
    await admin.execute(f"ALTER DATABASE {role} RENAME TO elsewhere")
    await admin.execute(f"ALTER ROLE {role} LOGIN")
    yield
    await admin.execute(f"ALTER DATABASE elsewhere RENAME TO {role}")


@contextlib.asynccontextmanager
async def too_few_connections(admin: Admin, role: str, url: str) -> AsyncIterator[None]:
    await admin.execute(f"ALTER ROLE {role} NOSUPERUSER CONNECTION LIMIT 0")
    await cut(admin, role)
    yield
    await admin.execute(f"ALTER ROLE {role} SUPERUSER CONNECTION LIMIT -1")


@contextlib.asynccontextmanager
async def schema_away(admin: Admin, role: str, url: str) -> AsyncIterator[None]:
    inside = await asyncpg.connect(url)
    await inside.execute("ALTER SCHEMA public RENAME TO away")
    yield
    await inside.execute("ALTER SCHEMA away RENAME TO public")
    await inside.close()


Fault = Callable[[Admin, str, str], contextlib.AbstractAsyncContextManager[None]]


@pytest.mark.parametrize(
    "fault", [login_refused, not_accepting, renamed, too_few_connections, schema_away]
)
async def test_decisions_go_on_and_recording_is_put_off(
    admin: Admin, role: str, database_url: str, client: Client, fault: Fault
) -> None:
    async def health() -> spb.DatabaseHealth:
        answer = await client.system.GetSystemHealth(spb.GetSystemHealthRequest())
        return answer.database

    assert (await record(client, logged("before", "ada"))).recorded == 1
    async with fault(admin, role, database_url):
        failure = await failure_of(record(client, logged("after", "ada")))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert failure.retry_seconds
        answer = await client.recommendation.GetRecommendationParams(
            request("nobody", personality=None)
        )
        assert answer.fallback_reason == pb.FALLBACK_REASON_PROFILE_UNAVAILABLE
        assert (await health()).problem

    async def is_well() -> bool:
        return (await health()).problem == ""

    await eventually(is_well)
    assert (await record(client, logged("after", "ada"))).recorded == 1


async def test_a_lock_that_is_not_to_be_had_in_time(
    admin: Admin, role: str, database_url: str, client: Client
) -> None:
    await admin.execute(f"ALTER ROLE {role} SET lock_timeout = '50ms'")
    await cut(admin, role)
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("LOCK interactions")
        failure = await failure_of(record(client, logged("i", "ada")))
    assert failure.code == grpc.StatusCode.UNAVAILABLE
    assert (await record(client, logged("i", "ada"))).recorded == 1
    await holder.close()
