"""`recparams runs`: the run log."""

import click

from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from recparams_server.cli.connection import (
    admin_call,
    admin_metadata,
    channel,
    json_option,
    server_options,
)
from recparams_server.cli.options import int64
from recparams_server.cli.output import enum_name, print_json, print_table, when_listed
from recparams_server.cli.run_output import print_run
from recparams_server.cli.train import follow


@click.group()
def runs() -> None:
    """Look at training runs, follow one, or stop one."""


@runs.command("list")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True)
@server_options
@json_option
def list_runs(limit: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """List the newest runs: what became of each, and why.

    The result of a run that has completed is what became of its version: activated, started,
    waiting, superseded, refused, stored, or no_change where there was nothing to learn. Trained are
    the interactions it learned from, with their mean reward.

    \b
    recparams runs list --limit 5
    """
    answer = admin_call(
        grpc_pb.TrainingServiceStub,
        "ListTrainingRuns",
        pb.ListTrainingRunsRequest(page_size=limit),
        address,
        admin_key,
    )
    if as_json:
        print_json(answer)
        return
    if not answer.runs:
        click.echo("no runs yet: recparams train --wait")
        return
    print_table(
        ("run", "created (UTC)", "result", "trained", "reward", "version"),
        (
            (
                run.run_id,
                when_listed(run.created_at),
                enum_name(run, "outcome" if run.outcome else "status"),
                run.interactions_trained or "-",
                f"{run.average_reward:.3f}" if run.interactions_trained else "-",
                run.model_version or "-",
                run.error or run.outcome_reason,
            )
            for run in answer.runs
        ),
        notes="why",
    )


@runs.command()
@click.argument("run_id", type=int64)
@server_options
@json_option
def show(run_id: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Show one run.

    \b
    recparams runs show 12
    """
    run = admin_call(
        grpc_pb.TrainingServiceStub,
        "GetTrainingRun",
        pb.GetTrainingRunRequest(run_id=run_id),
        address,
        admin_key,
    ).run
    if as_json:
        print_json(run)
    else:
        print_run(run)


@runs.command()
@click.argument("run_id", type=int64)
@server_options
@json_option
def watch(run_id: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Follow a run to its end; exit codes as of `recparams train --wait`.

    \b
    recparams runs watch 12
    """
    with channel(address) as opened:
        stub = grpc_pb.TrainingServiceStub(opened)
        follow(stub, run_id, admin_metadata(admin_key), address, as_json=as_json)


@runs.command()
@click.argument("run_id", type=int64)
@server_options
@json_option
def cancel(run_id: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Stop a run; its interactions are learned by the next one.

    \b
    recparams runs cancel 12
    """
    answer = admin_call(
        grpc_pb.TrainingServiceStub,
        "CancelTrainingRun",
        pb.CancelTrainingRunRequest(run_id=run_id),
        address,
        admin_key,
    )
    if as_json:
        print_json(answer)
    else:
        click.echo(f"training run {run_id} was asked to stop")
