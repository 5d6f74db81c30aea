"""`recparams train`: a training run, as the weekly CronJob starts it."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from recparams.v1 import evaluation_pb2
from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from recparams_server.cli.connection import (
    SECONDS,
    Exit,
    admin_metadata,
    channel,
    fail,
    json_option,
    server_options,
)
from recparams_server.cli.options import int32, moment, objective, parameter
from recparams_server.cli.output import print_json, to_dict
from recparams_server.cli.run_output import print_run
from recparams_server.contract.enums import enum_number

Metadata = tuple[tuple[str, str], ...]
PATIENCE_SECONDS = 60.0
_EXITS = {
    pb.TRAINING_RUN_STATUS_COMPLETED: Exit.OK,
    pb.TRAINING_RUN_STATUS_FAILED: Exit.FAILED,
    pb.TRAINING_RUN_STATUS_CANCELLED: Exit.CANCELLED,
}
_HYPERPARAMETERS = [
    field.name
    for field in pb.Hyperparameters.DESCRIPTOR.fields
    if field.type == FieldDescriptor.TYPE_DOUBLE
]


def hyperparameter_options(command: Any) -> Any:
    """Adds an option for each hyperparameter."""
    for name in reversed(_HYPERPARAMETERS):
        option = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=float,
            help=f"Override {name} for this run.",
        )
        command = option(command)
    return command


def timestamp(instant: datetime | None) -> Timestamp | None:
    """Returns the timestamp of an option's value; None if it was not given."""
    if instant is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(instant)
    return stamp


@click.command()
@click.option("--wait", is_flag=True, help="Follow the run to its end; the exit code tells it.")
@click.option(
    "--days", type=int32, help="Leave out what happened longer ago. [default: all that is due]"
)
@click.option(
    "--min-interactions", type=int32, help="Least untrained ones of a person. [default: 5]"
)
@click.option(
    "--mode",
    type=click.Choice(["incremental", "rebuild"]),
    default="incremental",
    show_default=True,
    help="Learn what is new, or the whole window from an empty table.",
)
@click.option("--as-of", type=moment, help="End of the window, UTC. [default: now]")
@click.option("--request-id", default="", help="Repeating one does not start a second run.")
@click.option(
    "--objective",
    "objectives",
    type=objective,
    multiple=True,
    metavar="NAME=WEIGHT",
    help="Weigh engagement, diversity or novelty differently, with --mode rebuild: a version that "
    "stands apart.",
)
@click.option(
    "--algorithm",
    default="",
    help="What learns, such as lin_ts. Another than the server's own needs --mode rebuild and "
    "makes a version that stands apart. [default: the server's]",
)
@click.option(
    "--parameter",
    "parameters",
    type=parameter,
    multiple=True,
    metavar="NAME=VALUE",
    help="Override a parameter that the algorithm has of its own, such as temperature=0.1.",
)
@click.option(
    "--engine",
    type=click.Choice(["process", "ray"]),
    help="What does the work: one process, or a Ray cluster. [default: the server's]",
)
@click.option(
    "--export",
    "export_folder",
    default="",
    metavar="FOLDER",
    help="With --engine ray: read what `recparams interactions export` wrote, under the path that "
    "servers and workers see it.",
)
@click.option("--exploration-schedule", help="Override exploration_schedule for this run.")
@click.option("--no-activate", is_flag=True, help="Store the new version without serving it.")
@hyperparameter_options
@server_options
@json_option
def train(
    wait: bool,
    days: int | None,
    min_interactions: int | None,
    mode: str,
    as_of: datetime | None,
    request_id: str,
    objectives: tuple[tuple[str, float], ...],
    algorithm: str,
    parameters: tuple[tuple[str, float], ...],
    engine: str | None,
    export_folder: str,
    exploration_schedule: str | None,
    no_activate: bool,
    address: str,
    admin_key: str | None,
    as_json: bool,
    **hyperparameters: float | None,
) -> None:
    """Learn from the recorded interactions that no run has learned yet.

    \b
    recparams train --wait
    recparams train --wait --mode rebuild --days 28 --learning-rate 0.05
    recparams train --wait --mode rebuild --objective novelty=0.3
    recparams train --wait --mode rebuild --algorithm lin_ts --parameter draws=128

    With --wait --json each line is an object: the steps of the run, and last the run.

    \b
    Exit codes with --wait:
      0  completed: the version is served,      5  cancelled
         starts or waits, or is not needed      6  completed, but a gate refused the version
      1  failed; nothing was changed
      2  bad input                              7  admin key missing or wrong
      3  another run is under way             130  Ctrl-C; the run goes on
      4  server unreachable
    """
    request = pb.TriggerTrainingRequest(
        request_id=request_id,
        days_back=days,
        min_interactions_per_user=min_interactions,
        mode=enum_number(pb.TrainingMode, mode),
        hyperparameters=pb.Hyperparameters(
            **hyperparameters,
            exploration_schedule=exploration_schedule,
            algorithm_parameters=dict(parameters),
        ),
        algorithm=algorithm,
        engine=enum_number(pb.TrainingEngine, engine or "unspecified"),
        export_folder=export_folder,
        as_of=timestamp(as_of),
        activate=not no_activate,
        objectives=evaluation_pb2.Objectives(**dict(objectives)) if objectives else None,
    )
    metadata = admin_metadata(admin_key)
    with channel(address) as opened:
        stub = grpc_pb.TrainingServiceStub(opened)
        run = stub.TriggerTraining(request, metadata=metadata, timeout=SECONDS).run
        if wait:
            follow(stub, run.run_id, metadata, address, as_json=as_json)
        elif as_json:
            print_json(run)
        else:
            click.echo(f"training run {run.run_id} started: recparams runs watch {run.run_id}")


def follow(
    stub: Any, run_id: int, metadata: Metadata, address: str, *, as_json: bool = False
) -> None:
    """Shows a run to its end and exits with its outcome."""
    updates = _updates(stub, run_id, metadata, address)
    try:
        if sys.stdout.isatty() and not as_json:
            run = _with_progress_bar(updates)
        else:
            run = _with_lines(updates, as_json=as_json)
        if as_json:
            click.echo(json.dumps(to_dict(run)))
        else:
            print_run(run)
    except KeyboardInterrupt:
        click.echo(
            f"training run {run_id} goes on: recparams runs watch {run_id}, or "
            f"recparams runs cancel {run_id}",
            err=True,
        )
        raise SystemExit(130) from None
    raise SystemExit(_exit_code(run))


def _exit_code(run: pb.TrainingRun) -> Exit:
    refused = run.outcome == pb.TRAINING_OUTCOME_REFUSED
    return Exit.GATED if refused else _EXITS[run.status]


def _updates(stub: Any, run_id: int, metadata: Metadata, address: str) -> Iterator[pb.TrainingRun]:
    """Yields the run whenever it changes, across restarts of the server."""
    lost_at = None
    while True:
        try:
            request = pb.WatchTrainingRunRequest(run_id=run_id)
            for update in stub.WatchTrainingRun(request, metadata=metadata):
                lost_at = None
                yield update.run
            return
        except grpc.RpcError as raised:
            if raised.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > PATIENCE_SECONDS:
                fail(raised, address)
            time.sleep(0.5)


def _with_progress_bar(updates: Iterator[pb.TrainingRun]) -> pb.TrainingRun:
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
    )
    run = pb.TrainingRun()
    with Progress(*columns, TimeElapsedColumn(), transient=True) as progress:
        bar = progress.add_task("starting", total=1.0)
        for run in updates:
            progress.update(bar, description=run.stage, completed=run.progress)
    return run


def _with_lines(updates: Iterator[pb.TrainingRun], *, as_json: bool) -> pb.TrainingRun:
    run, shown = pb.TrainingRun(), None
    for run in updates:
        step = (run.status, run.stage)
        if step != shown and run.status not in _EXITS:
            line = {"run_id": run.run_id, "stage": run.stage, "progress": round(run.progress, 4)}
            said = f"training run {run.run_id}: {run.stage}, {run.progress:.0%}"
            click.echo(json.dumps(line) if as_json else said)
        shown = step
    if run.outcome_reason:
        click.echo(_sentence(run), err=True)
    return run


def _sentence(run: pb.TrainingRun) -> str:
    version = f"version {run.model_version}: " if run.model_version else ""
    return f"training run {run.run_id} completed, {version}{run.outcome_reason}"
