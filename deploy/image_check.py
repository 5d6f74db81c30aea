"""`make image-check`: lints the Dockerfile and does what it says, without Docker.

The base image is a new virtual environment of the Python that runs this, and absolute paths are
within a folder, which is read-only to the container but for /tmp. Run by root, the container has
the Dockerfile's user and, on Linux, is process 1 of its own. docs/operations.md says what all that
leaves unchecked.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.dockerfile import ROOT, Image, ImageError, parse
from recparams_server.store.embedded import start_postgres

CAPABILITIES = ("bounding-set", "inh-caps", "ambient-caps")
START_SECONDS, STOP_SECONDS, COMMAND_SECONDS = 120, 60, 240


@dataclass
class Container:
    """What `docker run --read-only --tmpfs /tmp` of an image would run."""

    image: Image
    variables: dict[str, str]

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "cwd": self.image.root / "tmp",
            "env": self.image.environment | self.variables,
        }

    def _as_user(self, command: list[str]) -> list[str]:
        """The command run as USER, where this is run by root."""
        if self.image.user is None or self.image.user[0] == 0:
            raise ImageError("USER: root")
        if os.geteuid() != 0:
            return command
        uid, gid = self.image.user
        return [
            *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"),
            # The Python that stands for the base image's may lie where only root may read.
            *(f"--{kind}=-all,+dac_read_search" for kind in CAPABILITIES),
            *command,
        ]

    def run(self, *arguments: str) -> str:
        """Output of the entry point with these arguments. Raises ImageError where it fails."""
        return self._finish([*self.image.commands["ENTRYPOINT"], *arguments])

    def can_write(self, path: str) -> bool:
        """Whether it can make a file."""
        return self._passes(["/bin/sh", "-c", f"touch {self.image.root / path}"])

    def healthy(self) -> bool:
        """Whether HEALTHCHECK passes."""
        return self._passes(self.image.commands["HEALTHCHECK"])

    def _passes(self, command: list[str]) -> bool:
        try:
            self._finish(command)
        except ImageError:
            return False
        return True

    def _finish(self, command: list[str]) -> str:
        path = self.image.environment["PATH"]
        program = shutil.which(command[0], path=path) or command[0]
        done = subprocess.run(
            self._as_user([program, *command[1:]]),
            **self._options,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ImageError(f"{command}: exit code {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def start(self, log: Path) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        """Starts the entry point with CMD; what was started, and which process signals are for."""
        command = self.image.commands["ENTRYPOINT"] + self.image.commands["CMD"]
        alone = os.geteuid() == 0 and sys.platform == "linux"
        first = ["unshare", "--fork", "--pid"] if alone else []
        with log.open("wb") as file:
            started = subprocess.Popen(
                [*first, *self._as_user(command)], **self._options, stdout=file, stderr=file
            )
        if not alone:
            return started, psutil.Process(started.pid)
        deadline = time.monotonic() + START_SECONDS
        while not (children := psutil.Process(started.pid).children()):
            if time.monotonic() > deadline or started.poll() is not None:
                raise ImageError(f"CMD: it did not start: {log.read_text()}")
            time.sleep(0.05)
        return started, children[0]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def make_read_only(image: Image) -> None:
    """Takes the right to write away from everything but /tmp.

    Raises ImageError where not everybody may read a file.
    """
    for folder, folders, files in os.walk(image.root):
        if Path(folder) == image.root:
            folders.remove("tmp")
        for name in (*files, "."):
            path = Path(folder, name)
            if not path.is_symlink():
                mode = path.stat().st_mode
                if not mode & 0o004:
                    raise ImageError(f"{path}: only root may read it")
                path.chmod(mode & ~0o222)


def compiled(folder: Path) -> dict[str, bytes]:
    """Files of a numba cache."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def use(image: Image, database_url: str) -> None:
    """Migrates, serves, is healthy, records, trains, and stops when told to. Raises ImageError."""
    port = free_port()
    container = Container(
        image,
        {
            "RECPARAMS_DATABASE_URL": database_url,
            "RECPARAMS_ADMIN_KEY": "an-admin-key-for-the-image",
            "RECPARAMS_PORT": str(port),
            "RECPARAMS_ADDRESS": f"127.0.0.1:{port}",
            "RECPARAMS_SETTLING_SECONDS": "0",
            "RECPARAMS_MIN_INTERACTIONS_PER_USER": "1",
            "RECPARAMS_GATES": "report",
        },
    )
    if container.can_write("opt/recparams/bin/file") or not container.can_write("tmp/file"):
        raise ImageError("it can write elsewhere than to /tmp, or cannot write there")
    print("migrate:", container.run("migrate").strip())
    if container.healthy():
        raise ImageError("HEALTHCHECK: it passes while nothing runs")
    log = image.folder / "log"
    started, process = container.start(log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not container.healthy():
            if time.monotonic() > deadline or started.poll() is not None:
                raise ImageError(f"CMD: it does not become healthy: {log.read_text()}")
            time.sleep(0.5)
        print(f"CMD: healthy as {process.name()}, user {process.uids().real}")
        container.run("simulate", "--decisions", "500", "--people", "50")
        run = json.loads(container.run("train", "--wait", "--json").splitlines()[-1])
        print(f"train: {run['status']}, {run['interactions_trained']} interactions")
        if int(run["interactions_trained"]) == 0:
            raise ImageError("train: nothing was trained")
        built = compiled(image.root / "opt/recparams/numba")
        if not built or compiled(image.root / "tmp/numba") != built:
            raise ImageError("train: numba compiled anew what the image has compiled")
        asked = time.monotonic()
        process.send_signal(image.stop_signal)
        try:
            code = started.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ImageError(f"STOPSIGNAL: it runs on: {log.read_text()}") from None
        events = [json.loads(line).get("event") for line in log.read_text().splitlines()]
        if code != 0 or not {"draining", "stopped"} <= set(events):
            raise ImageError(f"STOPSIGNAL: exit code {code}: {log.read_text()}")
        print(f"STOPSIGNAL: drained and stopped in {time.monotonic() - asked:.1f} s")
    finally:
        if started.poll() is None:
            process.kill()
            started.wait(STOP_SECONDS)


def main() -> None:
    """Lints, builds and uses; a failure ends the program with exit code 1."""
    binaries = Path(sys.executable).parent
    dockerfile = ROOT / "Dockerfile"
    subprocess.run([binaries / "hadolint", dockerfile], check=True, timeout=COMMAND_SECONDS)
    with tempfile.TemporaryDirectory(prefix="recparams-image-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        postgres = start_postgres(folder / "postgres")
        try:
            command = [sys.executable, "-m", "venv", folder / "base"]
            subprocess.run(command, check=True, timeout=COMMAND_SECONDS)
            image = Image(folder)
            for instruction, rest in parse(dockerfile.read_text()):
                print(instruction, rest, flush=True)
                image.do(instruction, rest)
            make_read_only(image)
            use(image, postgres.get_uri())
        except ImageError as failure:
            raise SystemExit(f"image-check: {failure}") from None
        finally:
            postgres.stop()


if __name__ == "__main__":
    main()
