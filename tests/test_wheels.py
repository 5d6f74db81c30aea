"""The wheels: what they import as, what they carry, and what their pages on an index say."""

import os
import re
import sys
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from tests.processes import run
from tests.support import ROOT

PROJECTS = {"recparams": ROOT, "recparams-client": ROOT / "clients/python"}
OURS = {"recparams_rl", "recparams_server", "recparams_simulation"}
NEEDED = {
    *(f"{package}/__init__.py" for package in OURS),
    "recparams_rl/py.typed",
    "recparams_server/py.typed",
    "recparams_server/cli/report.html.j2",
    "recparams_server/store/migrations/env.py",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.Path]:
    """Both, as archives."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for name, source in PROJECTS.items():
        options = ("--no-isolation", "--wheel", "--outdir", folder)
        done = run(sys.executable, "-m", "build", *options, cwd=source)
        assert done.returncode == 0, done.stdout + done.stderr
        (file,) = folder.glob(f"{name.replace('-', '_')}-0*.whl")
        found[name] = zipfile.Path(file)
    return found


def names_of(wheel: zipfile.Path) -> set[str]:
    """Returns the files in a wheel."""
    return set(wheel.root.namelist())


def metadata_of(wheel: zipfile.Path) -> Message:
    """Returns what an index is told of a wheel."""
    (name,) = (name for name in names_of(wheel) if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr((wheel / name).read_text(encoding="utf-8"))


def test_they_import_under_names_of_their_own(wheels: dict[str, zipfile.Path]) -> None:
    names = names_of(wheels["recparams"])
    assert names >= NEEDED
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == OURS
    top = {name.split("/")[0] for name in names_of(wheels["recparams-client"])}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "recparams",
        "recparams_client",
    }


def relative_links(text: str) -> Iterator[str]:
    """Yields targets of links and pictures that lead nowhere outside of a checkout."""
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if not target.startswith(("https://", "#")):
            yield target


@pytest.mark.parametrize("name", PROJECTS)
def test_pages_on_an_index(wheels: dict[str, zipfile.Path], name: str) -> None:
    told = metadata_of(wheels[name])
    assert told["License-Expression"] == "Apache-2.0"
    assert any(file.endswith("/licenses/LICENSE") for file in names_of(wheels[name]))
    urls = dict(line.split(", ") for line in told.get_all("Project-URL") or [])
    assert set(urls) == {"Source", "Documentation", "Changelog", "Issues"}
    assert "Typing :: Typed" in (told.get_all("Classifier") or [])
    page = told.get_payload()
    assert isinstance(page, str)
    assert not list(relative_links(page))
    links = re.findall(rf"\]\({urls['Source']}/blob/main/([^)#]+)", page)
    assert len(links) > 3
    assert all((ROOT / link).exists() for link in links)
    assert list(relative_links((PROJECTS[name] / "README.md").read_text())), "else nothing is seen"


def test_one_licence() -> None:
    assert (PROJECTS["recparams-client"] / "LICENSE").read_bytes() == (
        ROOT / "LICENSE"
    ).read_bytes()


def test_the_command_runs_from_the_wheels(wheels: dict[str, zipfile.Path], tmp_path: Path) -> None:
    for wheel in wheels.values():
        # Anew: that of a path names folders which older Pythons do not find again.
        with zipfile.ZipFile(str(wheel.root.filename)) as archive:
            archive.extractall(tmp_path)
    code = (
        "import recparams_server, recparams_client, recparams_server.cli as cli\n"
        "print(recparams_server.__file__, recparams_client.__file__)\n"
        "cli.main(['demo', '--help'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = run(sys.executable, "-P", "-c", code, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{tmp_path}/recparams_") == 2
    assert "Usage:" in done.stdout
