"""URLs of databases: libpq's parameters are taken, translated, dropped or refused at the start."""

import sys
from pathlib import Path

import asyncpg
import pytest
from pydantic import ValidationError

from recparams_server.settings import Settings
from recparams_server.settings.database_url import parse_database_url
from recparams_server.store.database import database_url as driver_url
from tests.processes import run
from tests.support import ROOT, environment

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("given", "used", "unused"),
    [
        ("postgres://u:p%2Fw@db/x", "postgresql://u:p%2Fw@db/x", ()),
        ("postgresql://u:p@db:5432/x\n", "postgresql://u:p@db:5432/x", ()),
        ("postgresql:///x?host=/run/postgresql", "postgresql:///x?host=/run/postgresql", ()),
        ("postgresql://[::1]:5433/x", "postgresql://[::1]:5433/x", ()),
        ("postgresql://db/x?host=::1", "postgresql://db/x?host=%5B%3A%3A1%5D", ()),
        ("postgresql://%2Frun%2Fpg/x", "postgresql://%2Frun%2Fpg/x", ()),
        ("postgresql://db/x?sslmode=require", "postgresql://db/x?sslmode=require", ()),
        ("postgresql://db/x?ssl=true", "postgresql://db/x?sslmode=require", ()),
        (
            "postgresql://u:p@db/x?sslmode=require&channel_binding=require&connect_timeout=10",
            "postgresql://u:p@db/x?sslmode=require",
            ("channel_binding", "connect_timeout"),
        ),
        (
            "postgresql://db/x?keepalives=1&gssencmode=disable&application_name=a%20b",
            "postgresql://db/x?application_name=a%20b",
            ("keepalives", "gssencmode"),
        ),
        ("postgresql://db/x?options=-c%20a%3Db+c", "postgresql://db/x?options=-c%20a%3Db%2Bc", ()),
        ("postgresql://db/x?target_session_attrs=any", "postgresql://db/x", ()),
        ("postgresql://db/x?target_session_attrs=read-write", "postgresql://db/x", ()),
        (
            "postgresql://u:p@one,two:5433/x",
            "postgresql://u:p@one,two:5433/x?target_session_attrs=read-write",
            (),
        ),
        (
            "postgresql://one:1,[::2]:2/x?target_session_attrs=primary",
            "postgresql://one:1,[::2]:2/x?target_session_attrs=primary",
            (),
        ),
        (
            "postgresql:///x?host=one,two&port=5432,5433",
            "postgresql:///x?host=one,two&port=5432,5433&target_session_attrs=read-write",
            (),
        ),
    ],
)
def test_parameters_are_taken_translated_or_dropped(
    given: str, used: str, unused: tuple[str, ...]
) -> None:
    parsed = parse_database_url(given)
    assert (parsed.url, parsed.unused) == (used, unused)
    assert parse_database_url(used).url == used
    assert driver_url(Settings(database_url=given)) == used


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"mysql://u:{SECRET}@db/x", "must be postgresql://"),
        (f"host=db password={SECRET}", "must be postgresql://"),
        *(
            (f"postgresql://u:a{mark}{SECRET}@db:5432/x", "written as %2F")
            for mark in ("@", "/", "?", "#", "%", "[", "]", " ", "\n", "é", "/?", "@/", "@?", "/@")
        ),
        (f"postgresql://u:a?{SECRET}=b@db/x", "written as %2F"),
        (f"postgresql://u:5432?{SECRET}=b@db/x", "written as %2F"),
        (f"postgresql://u:5432?{SECRET}@db/x", "written as %2F"),
        (f"postgresql://u:{SECRET}@db:54x2/x", "host or port that cannot be"),
        (f"postgresql://u:{SECRET}@db:0/x", "host or port that cannot be"),
        (f"postgresql://u:{SECRET}@db:65536/x", "host or port that cannot be"),
        (f"postgresql://u:{SECRET}@one,,two/x", "host or port that cannot be"),
        (f"postgresql://u:{SECRET}@::1/x", "host or port that cannot be"),
        (f"postgresql://u:{SECRET}@db/x?host=one,", "empty host"),
        (f"postgresql://u:{SECRET}@db/x?port=no", "port that is no number"),
        (f"postgresql://u:{SECRET}@db/x?sslmode=yes", "sslmode, which can be disable, allow"),
        (f"postgresql://u:{SECRET}@db/x?sslrootcert=/no/such.pem", "sslrootcert, which is no file"),
        (f"postgresql://u:{SECRET}@db/x?target_session_attrs=standby", "target_session_attrs"),
        (f"postgresql://u:{SECRET}@db/x?target_session_attrs=prefer-standby", "read-write"),
        (f"postgresql://u:{SECRET}@db/x?gssencmode=require", "gssencmode"),
        (f"postgresql://u:{SECRET}@db/x?pgbouncer=true", "not taken here, pgbouncer"),
        (f"postgresql://u:{SECRET}@db/x?statement_timeout=5", "options=-c"),
        (f"postgresql://u:{SECRET}@db/x?sslmode", "not name=value"),
    ],
)
def test_what_can_never_work_is_refused_without_a_secret(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^(must|has) ") as refused:
        parse_database_url(url)
    assert said in str(refused.value)
    assert SECRET not in str(refused.value)
    with pytest.raises(ValidationError) as invalid:
        Settings(database_url=url)
    assert said in str(invalid.value)
    assert SECRET not in str(invalid.value)


def test_the_systems_certificates() -> None:
    parsed = parse_database_url("postgresql://db/x?sslrootcert=system")
    assert "sslmode=verify-full" in parsed.url
    assert "system" not in parsed.url


@pytest.mark.parametrize("command", ["serve", "migrate"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://u:a@{SECRET}@db/x", "written as %2F"),
        ("postgresql://db/x?sslmode=yes", "sslmode"),
        ("postgresql:///x?host=one,two,three&port=1,2", "could not match 2 port numbers"),
    ],
)
def test_a_start_that_is_in_vain_ends_at_once(
    tmp_path: Path, command: str, url: str, said: str
) -> None:
    env = environment(url, port=0, data_dir=tmp_path)
    done = run(sys.executable, "-m", "recparams_server.cli", command, env=env, cwd=ROOT, seconds=60)
    assert done.returncode in (1, 2)
    assert said in done.stderr.splitlines()[-1]
    assert SECRET not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


async def test_the_driver_takes_them(database_url: str) -> None:
    url = f"{database_url}&connect_timeout=3&channel_binding=prefer&application_name=me"
    connection = await asyncpg.connect(parse_database_url(url).url)
    assert await connection.fetchval("SHOW application_name") == "me"
    await connection.close()
