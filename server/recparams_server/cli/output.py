"""Messages as tables for people and JSON for scripts."""

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from recparams.v1.evaluation_pb2 import Estimate, LearningGain, PolicyDifference, PolicyEvaluation
from recparams_server.contract import enums

LEAST_NOTE = 30
"""Characters of a line from which notes stand beside a row rather than below it."""
_GAP = "  "


def to_dict(message: Message) -> dict[str, Any]:
    """Returns a message as JSON types, with the contract's field names and every plain field.

    Numbers are numbers, whatever their width; those of the contract stay exact in a double.
    """
    found = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _make_numbers(message.DESCRIPTOR, found)
    return found


def _make_numbers(kind: Any, found: dict[str, Any]) -> None:
    """Makes numbers of what the JSON form of protobuf has as text: those of 64 bits."""
    for name in found.keys() & kind.fields_by_name.keys():
        field, value = kind.fields_by_name[name], found[name]
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            if entry.fields_by_name["value"].cpp_type in _WIDE:
                found[name] = {key: int(one) for key, one in value.items()}
        elif field.cpp_type in _WIDE:
            found[name] = [int(one) for one in value] if isinstance(value, list) else int(value)
        elif isinstance(value, list | dict) and entry is not None:
            for one in value if isinstance(value, list) else (value,):
                _make_numbers(entry, one)


_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def print_json(message: Message) -> None:
    """Prints a message as one indented JSON document."""
    click.echo(json.dumps(to_dict(message), indent=2))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], notes: str | None = None
) -> None:
    """Prints rows under headings, numbers to the right, and nothing of them cut off.

    Args:
        columns: the headings.
        rows: the cells of each row; with notes its last one is what is to be said of the row.
        notes: heading of the notes, which are as long as they are. They stand last in the line, or
            below it on a terminal that is too narrow for that.
    """
    cells = [[_text(value) for value in row] for row in rows]
    said = [" ".join(row.pop().split()) for row in cells] if notes else [""] * len(cells)
    console = _console()
    # Without a terminal a row is a line, however long.
    across = console.width if console.is_terminal else sys.maxsize
    head, *lines = _drawn(console, columns, cells)
    width = console.width
    room = across - width - len(_GAP)
    beside = room >= LEAST_NOTE
    click.echo(f"{head}{_GAP}{notes}" if any(said) and beside else head.rstrip())
    for line, note in zip(lines, said, strict=True):
        if beside:
            first, *others = textwrap.wrap(note, room) or [""]
            click.echo(f"{line}{_GAP}{first}".rstrip())
            below = [f"{' ' * width}{_GAP}{part}" for part in others]
        else:
            click.echo(line.rstrip())
            below = [f"{2 * _GAP}{part}" for part in textwrap.wrap(note, across - 2 * len(_GAP))]
        for part in below:
            click.echo(part)


def _console() -> Console:
    # What a server says is text, not markup.
    return Console(markup=False, emoji=False, highlight=False)


def _drawn(console: Console, columns: Sequence[str], cells: list[list[str]]) -> list[str]:
    """Returns the lines of a table, headings first, and makes the console as wide as they are."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        numeric = {_is_number(row[position]) for row in cells} - {None} == {True}
        table.add_column(column, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    wide = console.options.update(width=10_000)
    console.width = Measurement.get(console, wide, table).maximum
    with console.capture() as drawn:
        console.print(table)
    return drawn.get().splitlines()


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Prints name and value, a line each; long values are wrapped on a terminal."""
    pairs = [(name, _text(value)) for name, value in facts]
    width = max(len(name) for name, _ in pairs)
    console = _console()
    room = console.width - width - len(_GAP) if console.is_terminal else sys.maxsize
    for name, value in pairs:
        lines = textwrap.wrap(value, max(room, LEAST_NOTE)) or [""]
        gap = f"\n{' ' * width}{_GAP}"
        click.echo(f"{name:<{width}}{_GAP}{gap.join(lines)}".rstrip())


def print_sentence(text: str) -> None:
    """Prints a sentence, wrapped on a terminal and one line elsewhere."""
    console = _console()
    width = console.width if console.is_terminal else sys.maxsize
    click.echo(textwrap.fill(text, width, subsequent_indent=_GAP))


def enum_name(message: Message, field: str) -> str:
    """Returns the value of an enum field without its prefix, in lower case."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert descriptor is not None  # noqa: S101 - the caller names an enum field
    return enums.enum_name(descriptor, getattr(message, field))


def when(stamp: Timestamp) -> str:
    """Returns an instant in UTC to the second; a dash where there is none."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ") if stamp.seconds else "-"


def when_listed(stamp: Timestamp) -> str:
    """Returns an instant in UTC to the minute, as lists have it; a dash where there is none."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M") if stamp.seconds else "-"


def version_name(version: int) -> str:
    """Returns the name of a version for people."""
    return f"version {version}" if version else "the hand-written rules"


def print_estimates(policies: Sequence[PolicyEvaluation]) -> None:
    """Prints every policy by every estimator, and the reasons of missing estimates."""
    # A line each: all estimators side by side would be cut off on a terminal.
    print_table(
        ("policy", "estimator", "value", "interval", "effective"),
        (
            (
                "" if position else policy.name,
                one.estimator,
                *((f"{one.value:.3f}", _interval(one)) if one.HasField("value") else ("-", "-")),
                f"{one.effective_sample_size:.0f}",
            )
            for policy in policies
            for position, one in enumerate(policy.estimates)
        ),
    )
    for policy in policies:
        for reason in dict.fromkeys(one.reason for one in policy.estimates if one.reason):
            print_sentence(f"{policy.name}: no estimate, {reason}")


def print_differences(differences: Iterable[PolicyDifference]) -> None:
    """Prints every pair of policies in a sentence."""
    for pair in differences:
        one = pair.difference
        said = f"no estimate, {one.reason}" if one.reason else f"{one.value:+.4f} {_interval(one)}"
        print_sentence(f"{pair.policy} - {pair.other}: {said}")


def gain_sentence(gain: LearningGain) -> str:
    """Returns what learning is worth, in a sentence."""
    interval = (
        f"{gain.low:+.4f} to {gain.high:+.4f} with {gain.confidence:.0%} confidence"
        if gain.HasField("low")
        else "too few people for an interval"
    )
    return (
        f"{gain.difference:+.4f} reward an interaction against the rules ({interval}), "
        f"{gain.rule_based_users} people on them since {when(gain.since)}"
    )


def give_up(failure: Exception, code: int) -> NoReturn:
    """Prints what failed and exits with a code."""
    click.echo(f"recparams: {failure or type(failure).__name__}", err=True)
    raise SystemExit(code) from None


def _interval(one: Estimate) -> str:
    return f"[{one.intervals[0].low:.3f}, {one.intervals[0].high:.3f}]"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return str(value)


_NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?( ?%)?")


def _is_number(text: str) -> bool | None:
    """Returns None for what stands for no value."""
    return None if text in ("", "-") else _NUMBER.fullmatch(text) is not None
