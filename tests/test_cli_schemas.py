"""The schemas of what commands print with --json are written down, and cover every command."""

from collections.abc import Iterator

import click
from jsonschema import Draft202012Validator

from recparams_server.cli import main
from recparams_server.cli.schemas import FILE, schemas, text

DOCUMENT = schemas()


def commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        path = f"{name} {word}".strip()
        if isinstance(command, click.Group):
            yield from commands(command, path)
        else:
            yield path, command


def test_they_are_written_down() -> None:
    assert FILE.read_text() == text(), "make generate renews it"
    Draft202012Validator.check_schema(DOCUMENT)


def test_every_command_with_json_has_one() -> None:
    with_json = {
        path
        for path, command in commands(main)
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert with_json == DOCUMENT["properties"].keys()


OF_ITS_OWN = {
    "ServerHealth": {"version"},
    "SegmentEvaluation": {"value"},
    "ModelDiffSegment": {"value"},
}
"""Fields whose word means another thing elsewhere: a release, and a word of a vocabulary."""


def test_numbers_are_numbers_wherever_they_are() -> None:
    found: dict[str, set[str]] = {}
    for message, definition in DOCUMENT["$defs"].items():
        for name, schema in definition["properties"].items():
            if "type" in schema and name not in OF_ITS_OWN.get(message, ()):
                found.setdefault(name, set()).add(schema["type"])
    for name, kinds in found.items():
        assert not ("string" in kinds and kinds & {"integer", "number"}), name
    for name in ("run_id", "version", "model_version", "interactions", "stored_bytes"):
        assert found[name] == {"integer"}, name
