"""The workflow that tests and publishes: linted, and made of what there is in the repository."""

import os
import sys
from pathlib import Path

import pytest
import yaml

from tests.processes import run
from tests.support import ROOT

FOLDER = ROOT / ".github/workflows"
ZIZMOR = Path(sys.executable).parent / "zizmor"


def lint(file: Path) -> str:
    """Returns what zizmor says of a workflow, which is nothing but that where all is well."""
    config = ROOT / ".github/zizmor.yml"
    quiet = ("--offline", "--no-progress", "--color", "never")
    done = run(ZIZMOR, *quiet, "--config", config, file, cwd=ROOT)
    return f"{done.returncode} {done.stdout}"


def test_the_linter_has_no_findings() -> None:
    assert lint(FOLDER / "release.yaml").startswith("0 No findings")


def test_a_careless_workflow_is_noticed(tmp_path: Path) -> None:
    careless = tmp_path / "careless.yaml"
    text = (FOLDER / "release.yaml").read_text()
    careless.write_text(text.replace(".ci/run", "echo ${{ github.head_ref }}"))
    assert "template-injection" in lint(careless)


@pytest.mark.parametrize("job", ["test", "wheels", "publish", "image"])
def test_steps_call_what_there_is(job: str) -> None:
    workflow = yaml.safe_load((FOLDER / "release.yaml").read_text())
    steps = workflow["jobs"][job]["steps"]
    for command in [step["run"].split() for step in steps if "run" in step]:
        if command[0] == ".ci/run":
            assert os.access(ROOT / ".ci/run", os.X_OK)
        elif command[0] == "make":
            assert f"\n{command[1]}:" in (ROOT / "Makefile").read_text()
        else:
            assert command[:3] == [".venv/bin/python", "-m", "build"]
            assert (ROOT / command[-1] / "pyproject.toml").is_file()
    published = [step for step in steps if "push" in step.get("with", {})]
    assert all(step["with"]["sbom"] for step in published)
    if job == "publish":
        assert workflow["jobs"][job]["if"] == "startsWith(github.ref, 'refs/tags/v')"
