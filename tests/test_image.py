"""The image, as far as it goes without Docker; `make image-check` builds and runs it."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy.dockerfile import Image, ImageError
from recparams_server.settings import Settings
from tests.faults import SMALL
from tests.processes import run
from tests.support import ROOT, connect, train, wait_serving
from tests.test_deploy import BINARIES, DEPLOY, image_variables
from tests.trust import likes_high_energy, live


def test_compose_is_valid() -> None:
    done = run(
        *(BINARIES / "docker-compose", "-f", DEPLOY / "compose.yaml", "--profile", "*"),
        *("config", "--format", "json"),
    )
    assert done.returncode == 0, done.stderr
    services = json.loads(done.stdout)["services"]
    assert set(services) == {"postgres", "server", "train", "prometheus", "grafana"}
    assert {"server", "train"} == {name for name, one in services.items() if one.get("read_only")}
    given = {**image_variables(), **services["server"]["environment"]}
    settings = Settings(
        **{name.removeprefix("RECPARAMS_").lower(): value for name, value in given.items()}
    )
    published = {port["target"] for port in services["server"]["ports"]}
    assert published == {settings.port, settings.metrics_port}
    key = services["train"]["environment"]["RECPARAMS_ADMIN_KEY"]
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == key


def test_dockerfile_lints() -> None:
    done = run(BINARIES / "hadolint", ROOT / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    built = Image(tmp_path)
    built.do("FROM", "python AS build")
    return built


def test_a_stage_has_what_was_copied_into_it(image: Image) -> None:
    image.do("RUN", "mkdir -p /opt/kept /opt/left && touch /opt/kept/file")
    image.do("FROM", "python")
    image.do("RUN", "test ! -e /opt/kept")
    image.do("COPY", "--from=build /opt/kept /opt/kept")
    image.do("RUN", "test -e /opt/kept/file && test ! -e /opt/left")


@pytest.mark.parametrize(
    ("instruction", "rest", "says"),
    [
        ("RUN", "false", "RUN false: exit code 1"),
        ("COPY", "tests tests", "COPY tests: .dockerignore keeps it out"),
        ("ADD", "rl rl", "ADD: not known"),
    ],
)
def test_what_does_not_work_is_said(image: Image, instruction: str, rest: str, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        image.do(instruction, rest)


def compiled(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*.nb?")}


@pytest.fixture(scope="module")
def warmed_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warmed") / "numba"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    done = run(sys.executable, "-m", "recparams_server.jobs.warm", cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def cache(warmed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "numba"
    shutil.copytree(warmed_cache, folder)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(folder))
    return folder


def test_a_template_of_jobs_reads_kernels_and_compiles_none(
    warmed_cache: Path, tmp_path: Path
) -> None:
    """A cache that is cold is filled by the first job that learns, and by no other."""
    code = "from recparams_server.jobs.template import load_kernels; print(load_kernels())"
    for folder, loads in ((tmp_path / "cold", False), (warmed_cache, True)):
        before = compiled(folder)
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
        done = run(sys.executable, "-c", code, cwd=ROOT, env=environment)
        assert (done.returncode, done.stdout) == (0, f"{loads}\n"), done.stderr
        assert compiled(folder) == before


@pytest.mark.parametrize("algorithm", ["q_learning", "expected_sarsa", "lin_ucb"])
async def test_training_compiles_nothing(start_server: Any, cache: Path, algorithm: str) -> None:
    warmed = compiled(cache)
    assert warmed
    async with connect(start_server(**SMALL, algorithm=algorithm).target) as client:
        await wait_serving(client)
        people = [f"user-{n}" for n in range(40)]
        # Twice, for a second run goes on from a stored table.
        for _ in range(2):
            await live(client, people, likes_high_energy)
            assert (await train(client)).interactions_trained == len(people)
    assert compiled(cache) == warmed
