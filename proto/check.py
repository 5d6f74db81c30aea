"""Checks the contract: buf lint always, buf breaking against the latest release tag if any."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"


def run(*command: str | Path) -> int:
    """Exit code of a command at the root of the repository."""
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode


def latest_release() -> str | None:
    """The newest tag of the form v1.2.3 that this commit descends from."""
    found = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


if __name__ == "__main__":
    failed = run(BUF, "lint", "proto")
    release = latest_release()
    if release is None:
        print("no release tag yet: nothing to break")
    else:
        failed |= run(BUF, "breaking", "proto", "--against", f".git#tag={release},subdir=proto")
    sys.exit(failed)
