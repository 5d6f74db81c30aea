"""Server processes that are killed and started again on the same port."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ADMIN_KEY = "an-admin-key-for-the-soak"
ADMIN = (("x-admin-key", ADMIN_KEY),)
EXPLORATION = 0.1
END_SECONDS = 15.0
"""Above the lame duck and draining times together, which are 1 s and 10 s by default."""


def settings(database_url: str, port: int, folder: Path, bins: int) -> dict[str, str]:
    """Environment of a server that trains everything at once and serves every version."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RECPARAMS_", "DATABASE_"))}
    given = {
        "database_url": database_url,
        "port": port,
        "data_dir": folder,
        "admin_key": ADMIN_KEY,
        "bins": bins,
        "serving_bins": 0,
        "exploration": EXPLORATION,
        "gates": "report",
        "rollout": "off",
        "holdback_percent": 0,
        "min_interactions_per_user": 1,
        "settling_seconds": 0,
        # Read from the database often, so that it is missed where it is away.
        "profile_cache_seconds": 2,
        "log_format": "json",
    }
    return {**clean, **{f"RECPARAMS_{name.upper()}": str(value) for name, value in given.items()}}


@dataclass
class Replica:
    """One server, through all of its processes.

    Attributes:
        name: for people.
        port: its own.
        folder: where its logs go.
        environment: of its processes.
        memory: by process id, (monotonic seconds, resident bytes) of each look.
    """

    name: str
    port: int
    folder: Path
    environment: dict[str, str]
    memory: dict[int, list[tuple[float, int]]] = field(default_factory=dict)
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        """What its processes log."""
        return self.folder / f"{self.name.replace(' ', '-')}.log"

    def start(self) -> None:
        """Starts a process; it is not SERVING yet."""
        with self.log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "recparams_server.cli", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(END_SECONDS)

    def terminate(self) -> int | None:
        """SIGTERM; returns the exit code, None where it does not end."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def look(self, now: float) -> None:
        """Notes the memory of its process."""
        if self._process is not None and self._process.poll() is None:
            try:
                used = psutil.Process(self._process.pid).memory_info().rss
            except psutil.Error:
                return
            self.memory.setdefault(self._process.pid, []).append((now, used))

    def trainers(self) -> Iterator[psutil.Process]:
        """Its training processes."""
        if self._process is None or self._process.poll() is not None:
            return
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if process.name().startswith("train "):
                    yield process
            except psutil.Error:
                continue

    def errors(self) -> Counter[str]:
        """How often it logged what, at level error or in other words than its own."""
        found: Counter[str] = Counter()
        for line in self.log.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                found["lines that are not log events"] += bool(line.strip())
                continue
            if entry.get("level") in ("error", "critical"):
                found[entry["event"]] += 1
        return found
