"""The distribution: what it needs, what it holds, and that its generated code is fresh."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CLIENT = ROOT / "clients" / "python"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
}


def test_the_wheel(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path]
    subprocess.run(
        command, cwd=CLIENT, env=ENVIRONMENT, check=True, capture_output=True, timeout=240
    )
    (wheel,) = tmp_path.glob("recparams_client-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        requires = Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist") or []
    assert {re.split("[<>]", line)[0].strip() for line in requires} == {"grpcio", "protobuf"}
    assert {
        "recparams_client/py.typed",
        "recparams/v1/py.typed",
        "recparams/v1/recommendation_pb2.pyi",
        "recparams/v1/recommendation_pb2_grpc.pyi",
        "recparams/v1/training_pb2.py",
    } <= names


def test_it_imports_without_numpy_or_the_server() -> None:
    program = (
        "import sys, recparams_client\n"
        "heavy = {'numpy', 'recparams_rl', 'recparams_server', 'google.rpc'}\n"
        "assert not heavy & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/", timeout=240)


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "proto" / "generate.py", tmp_path]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    if done.returncode == os.EX_TEMPFAIL:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    generated = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    source = CLIENT / "src"
    stale = [
        str(path)
        for path in sorted(generated)
        if not (source / path).is_file()
        or (source / path).read_bytes() != (tmp_path / path).read_bytes()
    ]
    assert not stale, f"run `make generate`: {stale}"
    kept = {p.relative_to(source) for p in (source / "recparams").rglob("*.py*") if p.is_file()}
    kept = {path for path in kept if "__pycache__" not in path.parts}
    assert kept <= generated, "files of messages that are no longer in proto/"
