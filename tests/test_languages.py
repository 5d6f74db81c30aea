"""Clients in other languages: TypeScript's against a real server, the others' templates by buf."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from recparams_server.app import App
from tests import processes
from tests.support import ROOT

FOLDER = ROOT / "clients" / "typescript"
BINARIES = Path(sys.executable).parent

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node's npm")


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command with the modules' and our own binaries on its path."""
    path = f"{cwd / 'node_modules' / '.bin'}:{BINARIES}:{os.environ['PATH']}"
    return processes.run(*command, cwd=cwd, env={**os.environ, "PATH": path})


@needs_npm
@pytest.mark.usefixtures("client")
async def test_it_decides_and_records(app: App, db: asyncpg.Connection, tmp_path: Path) -> None:
    shutil.copytree(
        FOLDER, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "gen")
    )
    for command in (
        ("npm", "install", "--no-package-lock", "--no-audit", "--no-fund"),
        ("buf", "generate", str(ROOT / "proto"), "--template", "buf.gen.yaml"),
        ("npm", "run", "build"),
    ):
        done = await asyncio.to_thread(run, *command, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    asked = ("node", "dist/smoke.js", f"127.0.0.1:{app.port}")
    done = await asyncio.to_thread(run, *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["params"]["maxEnergy"] == pytest.approx(0.4)
    assert (found["propensity"], found["recorded"], found["duplicates"]) == (1, 1, 0)
    assert await db.fetchval("SELECT count(*) FROM interactions WHERE reactions = 1") == 1
    gone = await asyncio.to_thread(run, "node", "dist/smoke.js", "127.0.0.1:1", cwd=tmp_path)
    assert gone.returncode == 1
    assert gone.stderr.startswith("recparams: ")
    assert "    at " not in gone.stderr


@pytest.mark.parametrize("language", ["go", "java"])
def test_templates_lack_nothing_but_their_plugins(language: str, tmp_path: Path) -> None:
    template = ROOT / "clients" / language / "buf.gen.yaml"
    done = run("buf", "generate", str(ROOT / "proto"), "--template", str(template), cwd=tmp_path)
    if done.returncode == 0:
        assert list((tmp_path / "gen").rglob("*ecommendation*"))
    for line in done.stderr.splitlines():
        assert line.endswith("executable file not found in $PATH"), done.stderr
