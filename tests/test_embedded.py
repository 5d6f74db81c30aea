"""The user that the embedded Postgres runs as, where this is root."""

import os
import pwd
import shutil
import subprocess
import sys
import uuid

import pytest

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
