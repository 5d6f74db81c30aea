"""PgBouncer in front of a Postgres, where it is installed."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from recparams_simulation.demo_server import end, free_port

PROGRAM = shutil.which("pgbouncer", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
"""The program; None where it is not installed."""
START_SECONDS = 20.0
END_SECONDS = 10.0


class PgBouncer:
    """A pooler on a port of 127.0.0.1.

    Args:
        folder: for its configuration and log.
        port: its own.
        database: where it connects to, as PgBouncer writes it, such as host=... port=...
        pool_mode: session, transaction or statement.
        user: whom it runs as if root starts it, which it refuses to run as.
    """

    def __init__(
        self, folder: Path, port: int, database: str, pool_mode: str = "session", user: str = ""
    ) -> None:
        self.port = port
        self.log = folder / "pgbouncer.log"
        self._configuration = folder / "pgbouncer.ini"
        self._user = user or "nobody"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._configuration.write_text(
            f"[databases]\n* = {database}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = 60\n"
            # By default it tries a database that was away again after 15 s.
            "server_login_retry = 1\n"
        )

    def start(self) -> None:
        """Returns when it listens."""
        assert PROGRAM is not None
        as_user = ["-u", self._user] if os.geteuid() == 0 else []
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                [PROGRAM, *as_user, str(self._configuration)], stdout=file, stderr=file
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not start: {self.log.read_text()[-1000:]}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        assert self._process is not None
        try:
            connections = psutil.Process(self._process.pid).net_connections("tcp4")
        except psutil.NoSuchProcess:
            return False
        return any(one.status == psutil.CONN_LISTEN for one in connections)

    @property
    def has_crashed(self) -> bool:
        """True if it ended without being told to."""
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(END_SECONDS)

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            end(self._process)


def started_pooler(folder: Path, socket_folder: Path, user: str) -> PgBouncer | None:
    """Returns a PgBouncer in front of the Postgres of a user; None where it is not installed."""
    if PROGRAM is None:
        return None
    # It runs as that user, who must get at the socket.
    folder.chmod(0o755)
    database = f"host={socket_folder} user=postgres"
    pooler = PgBouncer(folder / "pooler", free_port("127.0.0.1", 0), database, user=user)
    pooler.start()
    return pooler
