"""The protoc that the client's stub is generated with.

Code that a newer one generates refuses every protobuf that is older than itself, and so all
programs that are held to one by something else. What this one generates works with protobuf 4.25 to
7 (clients/python/tests/test_versions.py).
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.62.3"
"""Of grpcio-tools: the last one with protobuf 4. It has wheels for Python 3.11 and 3.12."""
PIP_SECONDS = 240.0
PROTOC_SECONDS = 60.0


class ToolchainError(Exception):
    """The toolchain is not to be had; the message has pip's words."""


def run_protoc(*arguments: str) -> None:
    """Runs protoc, with the well-known types on its path. Raises as `installed`, and SystemExit."""
    folder = installed()
    command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
    command.append(f"-I{folder / 'grpc_tools' / '_proto'}")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=environment, timeout=PROTOC_SECONDS, check=False)
    if done.returncode:
        raise SystemExit("protoc failed")


def installed() -> Path:
    """Returns a folder with the toolchain alone, which it installs if need be.

    It stands beside the environment's own packages, whose protobuf it does not go with. It needs
    none itself.

    Raises:
        ToolchainError: pip cannot get it.
    """
    folder = Path(sys.prefix) / f"grpcio-tools-{VERSION}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=sys.prefix) as fresh:
            package = f"grpcio-tools=={VERSION}"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
            done = subprocess.run(
                [*pip, "--only-binary", ":all:", "--target", f"{fresh}/new", package],
                capture_output=True,
                text=True,
                timeout=PIP_SECONDS,
                check=False,
            )
            if done.returncode:
                raise ToolchainError(f"{package} is not to be had: {done.stderr.strip()}")
            Path(fresh, "new").rename(folder)
    return folder
