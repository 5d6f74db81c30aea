"""The client on the oldest and on the newest grpcio and protobuf that it says it takes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CLIENT = Path(__file__).resolve().parents[1]
DECLARED = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]["dependencies"]
OLDEST = [one.partition(",")[0].replace(">=", "==") for one in DECLARED]
INSTALL_SECONDS = 240.0
RUN_SECONDS = 120.0
# On Python 3.12 the oldest protobuf warns of itself.
WARNINGS = ["-W", "error", "-W", "ignore:Type google._upb._message:DeprecationWarning"]


def install(target: Path, requirements: list[str]) -> None:
    """Installs packages into a folder. Skips the test where they are not to be had."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
    pip += ["--retries", "0", "--target", str(target)]
    try:
        done = subprocess.run(
            [*pip, *requirements], capture_output=True, text=True, timeout=INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirements} did not come within {INSTALL_SECONDS:g} s")
    if done.returncode:
        pytest.skip(f"{requirements} cannot be installed here: {done.stderr[-500:]}")


@pytest.mark.parametrize("requirements", [OLDEST, DECLARED], ids=["oldest", "newest"])
def test_every_call_works(requirements: list[str], tmp_path: Path) -> None:
    install(tmp_path, requirements)
    # -S: these packages and the client alone, and not those of this environment.
    command = [sys.executable, "-S", *WARNINGS, CLIENT / "tests" / "every_call.py"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{CLIENT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    ran = dict(zip(("grpcio", "protobuf"), done.stdout.split(), strict=True))
    if requirements is OLDEST:
        assert [f"{name}=={version}" for name, version in ran.items()] == OLDEST
    else:
        # The newest protobuf, and a grpcio newer than the server's own limit.
        assert ran["protobuf"].split(".")[0] == "7"
