"""The demo's server: a child process on an embedded Postgres in a folder of its own."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recparams_simulation.demo import DemoError

MARK = "made-by-recparams-demo"
POSTGRES = "postgres"
LOG = "server.log"
KEY = "admin-key"
STARTUP_SECONDS = 120.0
SHUTDOWN_SECONDS = 20.0
KILL_SECONDS = 20.0


@contextmanager
def fresh_folder(folder: Path, stop_postgres: Callable[[Path], None]) -> Iterator[Path]:
    """Empties and locks a folder for one demo; its Postgres is stopped at the end.

    Args:
        folder: the folder, which is made if need be.
        stop_postgres: stops the Postgres of the folder that it is given, where one runs.

    Raises:
        DemoError: if the folder holds something that is not a demo's, or another demo runs in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    if not mark.exists() and any(folder.iterdir()):
        raise DemoError(f"{folder} is not empty and not a demo's: --data-dir takes another")
    with mark.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {folder}: --data-dir takes another") from None
        data = (folder / POSTGRES).absolute()
        stop_postgres(data)
        shutil.rmtree(data, ignore_errors=True)
        try:
            yield folder
        finally:
            # It outlives its server on purpose.
            stop_postgres(data)


def free_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0. Raises DemoError if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise DemoError(f"port {port} is taken: --port takes another, 0 any") from None
        return int(probe.getsockname()[1])


@contextmanager
def running_server(
    folder: Path, host: str, port: int, admin_key: str, algorithm: str, seed: int | None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a server that explores; it is SERVING within the block and drained at its end.

    With a seed it does the same each time: it tries the same by chance, and serves versions that
    pass the gates to everybody, since steps of a rollout go by the clock.

    Raises:
        DemoError: if it ended instead of serving, or took too long.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RECPARAMS_") and name != "DATABASE_URL"
    }
    settings = {
        "DATA_DIR": str(folder),
        "HOST": host,
        "PORT": str(port),
        "ADMIN_KEY": admin_key,
        "ALGORITHM": algorithm,
        # Weeks pass within seconds, so that no step can last for days.
        "ROLLOUT_STEP_SECONDS": "0.5",
        "WATCH_SECONDS": "0.5",
        "LOG_FORMAT": "json",
    }
    if seed is not None:
        # A profile that is waited for in vain has the rules decide.
        settings |= {"RANDOM_SEED": str(seed), "ROLLOUT": "off", "PROFILE_WAIT_SECONDS": "30"}
    # Where commands look for it that are given none.
    file = folder / KEY
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(admin_key)
    log = folder / LOG
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "recparams_server.cli", "serve"],
            env={**inherited, **{f"RECPARAMS_{k}": v for k, v in settings.items()}},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_serving(process, f"{host}:{port}", log)
        yield process
    finally:
        end(process)


def end(process: "subprocess.Popen[Any]", seconds: float = SHUTDOWN_SECONDS) -> int:
    """Stops a child by SIGTERM, or by SIGKILL where that takes too long; returns its exit code.

    Raises subprocess.TimeoutExpired if even a killed child does not end.
    """
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(KILL_SECONDS)


def _wait_until_serving(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise DemoError(f"the server ended with code {process.returncode}: see {log}")
            with suppress(grpc.RpcError):
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            time.sleep(0.1)
    raise DemoError(f"the server was not serving after {STARTUP_SECONDS:.0f} s: see {log}")
