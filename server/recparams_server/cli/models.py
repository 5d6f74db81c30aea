"""`recparams models`: versions, rollback, and tables in and out."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from recparams.v1 import models_pb2 as pb
from recparams.v1 import models_pb2_grpc as grpc_pb
from recparams.v1.training_pb2 import ModelStatistics
from recparams_server.cli.connection import (
    Exit,
    admin_call,
    admin_metadata,
    channel,
    json_option,
    server_options,
)
from recparams_server.cli.model_deletion import delete, prune
from recparams_server.cli.model_diff import diff
from recparams_server.cli.options import int64
from recparams_server.cli.output import (
    enum_name,
    print_facts,
    print_json,
    print_table,
    when,
    when_listed,
)

LONG_SECONDS = 600.0
CHUNK_BYTES = 256 * 1024


@click.group()
def models() -> None:
    """Look at model versions, serve another one, compare, move or delete them."""


models.add_command(diff)
models.add_command(delete)
models.add_command(prune)


@models.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@server_options
@json_option
def list_models(limit: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """List the newest versions; * marks the one to serve.

    The state says who is served it, or what became of it. States are those it has visited, where
    its algorithm counts them.

    \b
    recparams models list --limit 5
    """
    answer = admin_call(
        grpc_pb.ModelServiceStub,
        "ListModels",
        pb.ListModelsRequest(page_size=limit),
        address,
        admin_key,
    )
    if as_json:
        print_json(answer)
        return
    print_table(
        ("", "version", "created (UTC)", "algorithm", "state", "states"),
        (
            (
                "*" if model.active else "",
                model.version,
                when_listed(model.created_at),
                model.algorithm,
                _state(model),
                model.statistics.total_states or "-",
                model.halted_reason,
            )
            for model in answer.models
        ),
        notes="why",
    )
    for model in answer.models:
        if model.problem:
            click.echo(f"PROBLEM: {model.problem}", err=True)
    if answer.active_version == 0:
        click.echo("no version is active: the hand-written rules answer")
    if answer.serving_version != answer.active_version:
        click.echo(
            f"this server serves version {answer.serving_version}, not {answer.active_version}: "
            "see its log for why",
            err=True,
        )


@models.command()
@click.argument("version", type=int64, default=0)
@server_options
@json_option
def show(version: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Show one version with its statistics; by default the active one.

    \b
    recparams models show 12 --json
    """
    model = admin_call(
        grpc_pb.ModelServiceStub,
        "GetModel",
        pb.GetModelRequest(version=version),
        address,
        admin_key,
    ).model
    if as_json:
        print_json(model)
    else:
        _print_model(model)


def _state(model: pb.Model) -> str:
    name = enum_name(model, "state").replace("_", " ")
    return f"{name} {model.served_percent:.3g} %" if model.served_percent else name


def _table_facts(held: ModelStatistics) -> list[tuple[str, object]]:
    """Returns facts of a table; none of an algorithm that keeps none."""
    if not held.total_states:
        return []
    return [
        ("total states", f"{held.total_states} ({held.coverage:.2%} of all)"),
        ("state-actions", held.total_state_actions),
        ("average Q", held.avg_q_value),
        ("maximum Q", held.max_q_value),
    ]


def _print_model(model: pb.Model) -> None:
    held, learner = model.statistics, model.hyperparameters
    problem = (("PROBLEM", model.problem),) if model.problem else ()
    print_facts(
        (
            *problem,
            ("version", f"{model.version}{' (active)' if model.active else ''}"),
            ("state", _state(model)),
            *((("why", model.halted_reason),) if model.halted_reason else ()),
            ("created", when(model.created_at)),
            ("origin", f"{enum_name(model, 'origin')}, run {model.run_id or '-'}"),
            ("parent", model.parent_version or "none: from an empty table"),
            ("algorithm", model.algorithm),
            ("learning rate", learner.learning_rate),
            ("discount factor", learner.discount_factor),
            ("exploration", held.exploration_rate),
            ("updates", held.total_updates),
            *_table_facts(held),
            ("bins per trait", model.bins),
            ("moods", ", ".join(model.moods)),
            ("stored", f"{model.stored_bytes / 1024:.0f} KiB"),
            ("checksum", model.checksum),
        )
    )


@models.command()
@click.argument("version", type=int64)
@click.option("--reason", default="", help="Why, for the record.")
@server_options
@json_option
def activate(version: int, reason: str, address: str, admin_key: str | None, as_json: bool) -> None:
    """Serve a version on every replica; 0 serves the hand-written rules.

    \b
    recparams models activate 12 --reason 'better on new people'
    """
    answer = admin_call(
        grpc_pb.ModelServiceStub,
        "ActivateModel",
        pb.ActivateModelRequest(version=version, reason=reason),
        address,
        admin_key,
    )
    _print_switch(answer, as_json=as_json)


@models.command()
@click.option("--reason", default="", help="Why, for the record.")
@server_options
@json_option
def rollback(reason: str, address: str, admin_key: str | None, as_json: bool) -> None:
    """Serve what was served before; a second time, what was served before that.

    \b
    recparams models rollback --reason 'fewer likes since version 12'
    """
    answer = admin_call(
        grpc_pb.ModelServiceStub,
        "RollbackModel",
        pb.RollbackModelRequest(reason=reason),
        address,
        admin_key,
    )
    _print_switch(answer, as_json=as_json)


def _print_switch(answer: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        now, before = (
            f"version {version}" if version else "the hand-written rules"
            for version in (answer.active_version, answer.previous_version)
        )
        click.echo(f"serving {now} (before: {before})")


@models.command("export")
@click.argument("version", type=int64, default=0)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="File, replaced once all of it is here. [default: stdout]",
)
@server_options
def export_model(version: int, output: str, address: str, admin_key: str | None) -> None:
    """Write a version's table as q_table.json; by default the active one's.

    \b
    recparams models export 12 -o q_table.json
    """
    with channel(address) as opened:
        stream = grpc_pb.ModelServiceStub(opened).ExportModel(
            pb.ExportModelRequest(version=version),
            metadata=admin_metadata(admin_key),
            timeout=LONG_SECONDS,
        )
        if output == "-":
            for piece in stream:
                sys.stdout.buffer.write(piece.chunk)
        else:
            _write_whole(Path(output), stream)


def _write_whole(path: Path, stream: Iterable[pb.ExportModelResponse]) -> None:
    """Writes beside the file and then replaces it, so that it never holds half a table."""
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            for piece in stream:
                file.write(piece.chunk)
        part.replace(path)
    except OSError as failure:
        click.echo(f"recparams: {path}: {failure.strerror}", err=True)
        raise SystemExit(Exit.FAILED) from None
    finally:
        part.unlink(missing_ok=True)


@models.command("import")
@click.argument("file", type=click.File("rb"))
@click.option("--activate", is_flag=True, help="Serve it at once.")
@server_options
@json_option
def import_model(
    file: BinaryIO, activate: bool, address: str, admin_key: str | None, as_json: bool
) -> None:
    """Store a q_table.json as a new version.

    \b
    recparams models import models/q_table.json --activate
    """

    def pieces() -> Iterator[pb.ImportModelRequest]:
        while chunk := file.read(CHUNK_BYTES):
            yield pb.ImportModelRequest(chunk=chunk, activate=activate)

    with channel(address) as opened:
        model = (
            grpc_pb.ModelServiceStub(opened)
            .ImportModel(pieces(), metadata=admin_metadata(admin_key), timeout=LONG_SECONDS)
            .model
        )
    if as_json:
        print_json(model)
    else:
        _print_model(model)
