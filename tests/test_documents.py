"""The documents: commands work, output is what is shown, links lead somewhere."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import yaml

from proto.reference import missing, read, render
from recparams_server.cli import main
from recparams_server.settings import Settings
from recparams_server.store.embedded import stop_postgres
from recparams_simulation.demo_server import free_port
from tests.processes import running
from tests.support import ROOT, own_folder

README = ROOT / "README.md"
QUICK_START = ROOT / "docs/quick-start.md"
MIGRATING = ROOT / "docs/migrating.md"
DOCUMENTS = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/README.md")))
ADDRESS = "127.0.0.1:50051"
MARK = "@@@"
FOLLOW_SECONDS = 450
VARYING = {"decision_token", "model_version", "policy_arm", "propensity", "source"}
"""Parts of an answer that are another server's, or another call's."""
LEVELS = "low|medium|high|focused|balanced|diverse|familiar|mixed|exploratory"
SOURCES = "learned|borrowed|rule_based|exploration"
VERDICTS = "undecided|better|worse"

PRELUDE = """
make() {
    case "$*" in
        # The demo has tests of its own, and these are the tests.
        demo*|test*) command make --dry-run "$@" ;;
        # Without building what these tests run in.
        *) command make --old-file=.venv/.installed "$@" ;;
    esac
}
up() {
    for _ in {1..600}; do recparams health > /dev/null 2>&1 && return; sleep 0.2; done
    cat server.log; exit 1
}
"""


@dataclass(frozen=True)
class Command:
    """A command of a document, and the lines that it shows below it; None shows nothing."""

    text: str
    shown: str | None


def command(text: str) -> Command:
    """A command, which goes on while a line ends in a backslash or in quotes, and what follows."""
    lines = text.splitlines(keepends=True)
    for n in range(1, len(lines) + 1):
        typed = "".join(lines[:n])
        with contextlib.suppress(ValueError):
            shlex.split(typed)
            if not typed.endswith("\\\n"):
                return Command(typed.strip(), "".join(lines[n:]))
    raise AssertionError(f"unfinished: {text}")


def commands(document: Path, *, only: str = "", but: str = "") -> list[Command]:
    """The commands of the sh and console blocks, in order; Python blocks are one each.

    Args:
        document: Markdown.
        only, but: heading of a section of it to take alone, or to leave out.
    """
    found = []
    for section in re.split(r"^## ", document.read_text(), flags=re.MULTILINE):
        heading = section.split("\n", 1)[0]
        if (only and heading != only) or heading == but:
            continue
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.DOTALL | re.M):
            if language == "console":
                found += map(command, re.split(r"^\$ ", text, flags=re.M)[1:])
            elif language == "sh":
                lines = re.sub(r"\s+# .*$", "", text.replace("\\\n", ""), flags=re.M)
                found += [Command(line, None) for line in lines.splitlines() if line.strip()]
            elif language == "python":
                source = f"search = lambda **parameters: None\n{text}"
                found.append(Command(f"python - <<'END'\n{source}\nEND", None))
    return found


class Reader:
    """Somebody in a checkout of their own, with a free port instead of the usual one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port("127.0.0.1", 0)
        self._shells = contextlib.ExitStack()
        for path in ROOT.iterdir():
            if path.name != ".recparams":
                (folder / path.name).symlink_to(path)

    def follow(self, steps: list[Command]) -> list[str]:
        """Runs commands in one shell, all of which must succeed; returns what each printed."""
        script = "\n".join(f"echo '{MARK}'\n{self._shell(step.text)}" for step in steps)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RECPARAMS_", "MAKE")) and name != "DATABASE_URL"
        }
        ours = {
            "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
            "RECPARAMS_PORT": str(self._port),
            "RECPARAMS_ADDRESS": f"127.0.0.1:{self._port}",
            "RECPARAMS_LAME_DUCK_SECONDS": "0",
            # Without it one decision in twenty explores, and is not the one that is shown.
            "RECPARAMS_RANDOM_SEED": "1",
            # The same with fewer states.
            "RECPARAMS_BINS": "3",
            "RECPARAMS_SERVING_BINS": "3",
        }
        shell = self._shells.enter_context(
            running(
                *("bash", "-euo", "pipefail", "-c", PRELUDE + script),
                cwd=self._folder,
                env={**inherited, **ours},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        output, _ = shell.communicate(timeout=FOLLOW_SECONDS)
        assert shell.returncode == 0, output
        return output.split(f"{MARK}\n")[1:]

    def _shell(self, command: str) -> str:
        command = command.replace(ADDRESS, f"127.0.0.1:{self._port}")
        if command.endswith("make serve"):
            return f"{command} > server.log 2>&1 & up"
        if command == "recparams compare --quick":
            # It has tests of its own, and takes a minute.
            return f"{command} --seeds 1 --sizes 300 --learner q_learning --no-peers"
        if command == "recparams train --wait":
            # Held back by a gate: an outcome that few people make likely.
            return f"{command} || test $? = 6"
        return command

    def leave(self) -> None:
        """Stops what was started, and its Postgres."""
        try:
            self._shells.close()
        finally:
            stop_postgres(self._folder / ".recparams" / "postgres")


@pytest.fixture
def reader() -> Iterator[Reader]:
    with own_folder() as folder:
        somebody = Reader(folder)
        try:
            yield somebody
        finally:
            somebody.leave()


def alike(text: str) -> list[str]:
    """The lines of an output, without what differs from run to run."""
    text = re.sub(rf"\b({LEVELS}|{SOURCES}|{VERDICTS})\b", "@", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "#", text)
    text = re.sub(r"[+-]?\d[\d.,:TZ/-]*", "#", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def assert_shown(step: Command, printed: str) -> None:
    """What a document shows below a command is what the command prints.

    A line of dots stands for any lines.
    """
    assert step.shown is not None
    if step.shown.startswith("{"):
        shown, answer = json.loads(step.shown), json.loads(printed)
        same = shown.keys() - VARYING
        assert same
        assert {key: answer.get(key) for key in same} == {key: shown[key] for key in same}
        return
    pattern = "\n".join(
        r"(?:.*\n)*?.*" if line == "..." else re.escape(line) for line in alike(step.shown)
    )
    assert re.fullmatch(pattern, "\n".join(alike(printed))), f"{step.text}\n{printed}"


def follow(reader: Reader, steps: list[Command]) -> None:
    """Runs commands and compares what is shown with what they print."""
    assert steps
    for step, printed in zip(steps, reader.follow(steps), strict=True):
        if step.shown:
            assert_shown(step, printed)


@pytest.mark.timeout(FOLLOW_SECONDS + 30)
def test_the_readme_and_the_migration_are_true(reader: Reader) -> None:
    follow(reader, commands(README, but="Look after it") + commands(MIGRATING))


@pytest.mark.timeout(FOLLOW_SECONDS + 30)
def test_the_quick_start_is_true(reader: Reader) -> None:
    """What the README says of looking after a server needs one that has learned."""
    follow(reader, commands(QUICK_START) + commands(README, only="Look after it"))


FOLDERS = ("rl", "server", "simulation", "tests")
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def written_commands() -> Iterator[tuple[str, list[str]]]:
    """Every `recparams ...` in a document's code, and its words."""
    for document in DOCUMENTS:
        text = document.read_text()
        code = [block.replace("\\\n", " ") for block in FENCED.findall(text)]
        code += [" ".join(span.split()) for span in re.findall("`([^`]+)`", FENCED.sub("", text))]
        for line in "\n".join(code).splitlines():
            found = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(recparams [^|>&#;]*)", line.strip())
            if found and "..." not in found[1]:
                yield f"{document.name}: {found[1].strip()}", shlex.split(found[1])[1:]


@pytest.mark.parametrize(("where", "words"), list(written_commands()))
def test_every_command_is_one(where: str, words: list[str]) -> None:
    words = [re.sub(r"^([A-Z]|ID|USER_ID)$", "1", word) for word in words]
    found: click.Command = main
    context = click.Context(main)
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        inner = found.get_command(context, words[0])
        assert inner is not None, where
        found, words = inner, words[1:]
    if words:
        with contextlib.suppress(click.exceptions.Exit):
            found.make_context("recparams", words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_there(document: Path) -> None:
    text = document.read_text()
    spans = re.findall("`([^`\\n]+)`", FENCED.sub("", text))
    for path in spans:
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+\.(py|proto|md|toml|yaml|sql)", path):
            # The threat model names tests, and all documents modules, from within their folder.
            folders = ROOT, document.parent, *(ROOT / name for name in FOLDERS)
            assert any((folder / path).exists() for folder in folders), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.M)) <= targets


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(
        r"^#+ (.*)$",
        re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.M),
        re.M,
    )
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_document_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for document in ROOT.glob("docs/*.md"):
        assert document.name == "README.md" or f"({document.name})" in index, document.name


def test_every_alert_has_a_section() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    alerts = {
        rule["alert"].lower() for group in groups for rule in group["rules"] if "alert" in rule
    }
    sections = anchors(ROOT / "docs/operations.md")
    assert alerts
    assert alerts <= sections, alerts - sections


def test_every_setting_is_one() -> None:
    """Names in capitals are variables."""
    known = {f"RECPARAMS_{name.upper()}" for name in Settings.model_fields}
    known |= {"RECPARAMS_ADDRESS", "RECPARAMS_CONFIG"}
    known |= {"RECPARAMS_CA", "RECPARAMS_CERT", "RECPARAMS_KEY"}
    for document in DOCUMENTS:
        assert set(re.findall(r"RECPARAMS_[A-Z]+(?:_[A-Z]+)*", document.read_text())) <= known, (
            document
        )


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs/api.md").read_text() == render(read()), "run `make generate`"


def test_everything_in_the_contract_has_a_comment(tmp_path: Path) -> None:
    assert missing(read()) == []
    (tmp_path / "recparams/v1").mkdir(parents=True)
    (tmp_path / "recparams/v1/types.proto").write_text(
        'syntax = "proto3"; package recparams.v1; message M { int32 x = 1; } enum E { E_X = 0; }'
    )
    assert missing(read(tmp_path)) == [
        f"recparams/v1/types.proto: {name}" for name in ("M", "M.x", "E")
    ]
