"""Writes the API reference from the comments of the contract.

`python proto/reference.py [FILE]` writes into FILE, by default docs/api.md. It fails where a
service, rpc, message, field, oneof or enum has no comment.
"""

import re
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGE = ".recparams.v1."
ORDER = (
    "recommendation",
    "policy",
    "training",
    "models",
    "rollout",
    "system",
    "evaluation",
    "tuning",
    "types",
)

INTRODUCTION = """\
# API

Written by `make generate` from the comments in [proto/recparams/v1](../proto/recparams/v1): change
it there. A running server describes itself too: `grpcurl -plaintext 127.0.0.1:50051 describe`.

Any call may also end with one of these:

| status | when |
| --- | --- |
| UNAUTHENTICATED | the RPC asks who calls, and no key or certificate says so |
| PERMISSION_DENIED | the key is unknown, or its caller lacks the [role](operations.md#roles) |
| RESOURCE_EXHAUSTED | too many calls at a time or a second, or too large a message: settings say |
| DEADLINE_EXCEEDED | the caller's deadline, or the server's own `call_timeout_seconds` |
| UNAVAILABLE | no server, one that starts or stops, or no database where the call needs it |
| INTERNAL | a bug; the message names the incident under which the log has it |

Errors carry `google.rpc` details: BadRequest names the fields, ErrorInfo has a reason for programs,
RetryInfo says when to try again, RequestInfo has the request's id (the `x-request-id` metadata, or
one that the server made up), which the log has as `request_id`.
"""

_SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in pb.FieldDescriptorProto.Type.items()
}
_CODE = re.compile(r"(?<![\w`])(?:[A-Za-z]+(?:_[A-Za-z0-9]+)+|x-[a-z]+(?:-[a-z]+)*)(?![\w`])")

Path_ = tuple[int, ...]


@dataclass(frozen=True)
class File:
    """A file of the contract, with its comments by the path of what they are about."""

    proto: pb.FileDescriptorProto
    comments: dict[Path_, str]

    @property
    def name(self) -> str:
        """As in `types`."""
        return Path(self.proto.name).stem


def read(folder: Path = PROTO) -> list[File]:
    """The contract's files, in the order of the reference."""
    sources = sorted(folder.glob("recparams/v1/*.proto"))
    include = [f"-I{folder}", f"-I{files('grpc_tools') / '_proto'}"]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "set"
        options = ["--include_source_info", f"--descriptor_set_out={output}"]
        if protoc.main(["protoc", *include, *options, *map(str, sources)]) != 0:
            raise SystemExit("protoc failed")
        compiled = pb.FileDescriptorSet.FromString(output.read_bytes())
    found = [File(proto, _comments(proto)) for proto in compiled.file]
    return sorted(found, key=lambda file: ORDER.index(file.name))


def _comments(proto: pb.FileDescriptorProto) -> dict[Path_, str]:
    return {
        tuple(location.path): " ".join(location.leading_comments.split())
        for location in proto.source_code_info.location
        if location.leading_comments
    }


def missing(contract: list[File]) -> list[str]:
    """What has no comment. Values of enums need none: MOOD_HAPPY says it."""
    found = []
    for file in contract:
        for path, name in _commented(file.proto):
            if path not in file.comments:
                found.append(f"{file.proto.name}: {name}")
    return found


def _commented(proto: pb.FileDescriptorProto) -> list[tuple[Path_, str]]:
    """Path and name of everything that needs a comment."""
    found: list[tuple[Path_, str]] = []
    for i, service in enumerate(proto.service):
        found.append(((6, i), service.name))
        found += [
            ((6, i, 2, j), f"{service.name}.{rpc.name}") for j, rpc in enumerate(service.method)
        ]
    for i, message in enumerate(proto.message_type):
        found.append(((4, i), message.name))
        found += [((4, i, 2, j), f"{message.name}.{f.name}") for j, f in enumerate(message.field)]
        found += [((4, i, 8, j), f"{message.name}.{name}") for j, name in _oneofs(message)]
    found += [((5, i), enum.name) for i, enum in enumerate(proto.enum_type)]
    return found


def _oneofs(message: pb.DescriptorProto) -> list[tuple[int, str]]:
    """Number and name of each; protoc adds others of its own for optional fields."""
    own = {field.oneof_index for field in message.field if field.proto3_optional}
    return [(j, oneof.name) for j, oneof in enumerate(message.oneof_decl) if j not in own]


def _in_oneof(field: pb.FieldDescriptorProto, j: int) -> bool:
    return field.HasField("oneof_index") and field.oneof_index == j


def render(contract: list[File]) -> str:
    """The reference in Markdown."""
    parts = [INTRODUCTION, _contents(contract)]
    for file in contract:
        parts.append(f"## {file.name}.proto\n")
        parts += [_service(file, i) for i in range(len(file.proto.service))]
        parts += [_message(file, i) for i in range(len(file.proto.message_type))]
        parts += [_enum(file, i) for i in range(len(file.proto.enum_type))]
    return "\n".join(parts)


def _contents(contract: list[File]) -> str:
    lines = ["| service | calls |", "| --- | --- |"]
    for file in contract:
        for service in file.proto.service:
            calls = ", ".join(_link(rpc.name) for rpc in service.method)
            lines.append(f"| {_link(service.name)} | {calls} |")
    return "\n".join(lines) + "\n"


def _service(file: File, i: int) -> str:
    service = file.proto.service[i]
    parts = [f"### {service.name}\n", _prose(file.comments.get((6, i), ""))]
    for j, rpc in enumerate(service.method):
        asked, answered = (
            f"{'stream ' if stream else ''}{_link(kind.removeprefix(PACKAGE))}"
            for kind, stream in (
                (rpc.input_type, rpc.client_streaming),
                (rpc.output_type, rpc.server_streaming),
            )
        )
        comment, _, errors = file.comments.get((6, i, 2, j), "").partition("Errors: ")
        parts += [f"#### {rpc.name}\n", f"{asked} → {answered}\n", _prose(comment.strip())]
        if errors:
            parts.append(_prose(f"Errors: {errors}"))
    return "\n".join(parts)


def _message(file: File, i: int) -> str:
    message = file.proto.message_type[i]
    parts = [f"### {message.name}\n", _prose(file.comments.get((4, i), ""))]
    if message.field:
        rows = ["| field | type | |", "| --- | --- | --- |"]
        for j, field in enumerate(message.field):
            about = _cell(file.comments.get((4, i, 2, j), ""))
            rows.append(f"| `{field.name}` = {field.number} | {_type(message, field)} | {about} |")
        parts.append("\n".join(rows) + "\n")
    for j, name in _oneofs(message):
        members = [f"`{f.name}`" for f in message.field if _in_oneof(f, j)]
        comment = file.comments.get((4, i, 8, j), "")
        parts.append(_prose(f"`{name}` is one of {', '.join(members)}. {comment}"))
    return "\n".join(parts)


def _type(message: pb.DescriptorProto, field: pb.FieldDescriptorProto) -> str:
    for nested in message.nested_type:
        if nested.options.map_entry and field.type_name.endswith(f".{nested.name}"):
            key, value = nested.field
            return f"map of {_kind(key)} to {_kind(value)}"
    if field.label == field.LABEL_REPEATED:
        return f"repeated {_kind(field)}"
    return f"optional {_kind(field)}" if field.proto3_optional else _kind(field)


def _kind(field: pb.FieldDescriptorProto) -> str:
    if not field.type_name:
        return _SCALARS[field.type]
    if not field.type_name.startswith(PACKAGE):
        return field.type_name.removeprefix(".")
    return _link(field.type_name.removeprefix(PACKAGE))


def _enum(file: File, i: int) -> str:
    enum = file.proto.enum_type[i]
    rows = ["| value | |", "| --- | --- |"]
    for j, value in enumerate(enum.value):
        about = _cell(file.comments.get((5, i, 2, j), ""))
        rows.append(f"| `{value.name}` = {value.number} | {about} |")
    heading = [f"### {enum.name}\n", _prose(file.comments.get((5, i), ""))]
    return "\n".join([*heading, "\n".join(rows) + "\n"])


def _link(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _prose(comment: str) -> str:
    return _CODE.sub(r"`\g<0>`", comment) + "\n"


def _cell(comment: str) -> str:
    return _prose(comment).strip().replace("|", "\\|")


if __name__ == "__main__":
    read_files = read()
    if without := missing(read_files):
        raise SystemExit("these have no comment: " + ", ".join(without))
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api.md"
    target.write_text(render(read_files))
