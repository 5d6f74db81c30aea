"""Finds promtool: on the PATH, or in Debian's package `prometheus`, unpacked without root.

python -m deploy.prometheus.promtool test rules deploy/prometheus/alerts_test.yaml
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(sys.prefix) / "prometheus"
"""Goes with the virtual environment."""
SECONDS = 120


class NotFoundError(Exception):
    """There is no promtool; the message says why."""


def program(name: str = "promtool") -> Path:
    """Path of promtool, or of prometheus. Raises NotFoundError."""
    found = shutil.which(name)
    if found:
        return Path(found)
    if not (FOLDER / name).exists():
        _unpack()
    return FOLDER / name


def _unpack() -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise NotFoundError("no promtool on the PATH, and no apt-get and dpkg to get it with")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Lists of its own, since only root may renew those of the system.
        (folder / "lists/partial").mkdir(parents=True)
        (folder / "cache/archives/partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache")
        own += ("-o", "APT::Sandbox::User=")
        _run(folder, "apt-get", *own, "--quiet", "update")
        _run(folder, "apt-get", *own, "--quiet", "download", "prometheus")
        (package,) = folder.glob("*.deb")
        _run(folder, "dpkg", "-x", str(package), "unpacked")
        FOLDER.mkdir(exist_ok=True)
        for path in (folder / "unpacked/usr/bin").iterdir():
            shutil.move(path, FOLDER / path.name)


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise NotFoundError(f"{command[0]} took too long") from None
    except subprocess.CalledProcessError as failure:
        raise NotFoundError(f"{' '.join(command[-2:])}: {failure.stderr.strip()[-300:]}") from None


if __name__ == "__main__":
    try:
        tool = program()
    except NotFoundError as failure:
        sys.exit(f"promtool cannot be had: {failure}")
    os.execv(tool, [str(tool), *sys.argv[1:]])
