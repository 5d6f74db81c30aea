"""`recparams evaluate`: logged reactions, and the value of other policies on them."""

import os
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import click

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from recparams_server.cli.connection import Exit, admin_call, json_option, server_options
from recparams_server.cli.options import int32, moment, policy
from recparams_server.cli.output import (
    gain_sentence,
    print_differences,
    print_estimates,
    print_facts,
    print_json,
    print_sentence,
    print_table,
    when,
)
from recparams_server.cli.train import timestamp

SECONDS = 600.0


@click.command()
@click.option("--days", type=int32, help="Length of the period in days. [default: 3]")
@click.option("--as-of", type=moment, help="End of the period, UTC. [default: now]")
@click.option(
    "--policy",
    "policies",
    type=policy,
    multiple=True,
    metavar="POLICY",
    help="A version's number, active, rule-based or random; repeatable. [default: these three]",
)
@click.option(
    "--include-trained",
    is_flag=True,
    help="Keep interactions that a version was trained on, although they flatter it.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the intervals.")
@click.option("--overall-only", is_flag=True, help="Leave out the estimates by segment.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write a page with pictures and segments, readable offline.",
)
@server_options
@json_option
def evaluate(
    days: int | None,
    as_of: datetime | None,
    policies: tuple[epb.Policy, ...],
    include_trained: bool,
    confidence: float,
    overall_only: bool,
    html: Path | None,
    address: str,
    admin_key: str | None,
    as_json: bool,
) -> None:
    """Sum up the reactions of the last days, and estimate the value of other policies on them.

    Estimates by segment are in --json and --html.

    \b
    recparams evaluate --days 7
    recparams evaluate --policy 12 --policy active --html report.html
    """
    if html is not None and not (find_spec("jinja2") and find_spec("matplotlib")):
        click.echo("recparams: --html needs more: pip install 'recparams[report]'", err=True)
        raise SystemExit(Exit.FAILED)
    answer = admin_call(
        grpc_pb.TrainingServiceStub,
        "Evaluate",
        pb.EvaluateRequest(
            test_days=days,
            as_of=timestamp(as_of),
            policies=policies,
            include_trained=include_trained,
            confidence=confidence,
            overall_only=overall_only,
        ),
        address,
        admin_key,
        SECONDS,
    )
    if as_json:
        print_json(answer)
    else:
        print_evaluation(answer)
    if html is not None:
        _write(answer, confidence, html)
        click.echo(f"\nreport: {html}", err=as_json)


def _write(answer: pb.EvaluateResponse, confidence: float, file: Path) -> None:
    from recparams_server.cli.report import render

    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        draft.write_text(render(answer, confidence), encoding="utf-8")
        draft.replace(file)
    except OSError as failure:
        draft.unlink(missing_ok=True)
        click.echo(f"recparams: {file}: {failure.strerror}", err=True)
        raise SystemExit(Exit.FAILED) from None


def print_evaluation(answer: pb.EvaluateResponse) -> None:
    """Prints an evaluation for people."""
    unknown = answer.unknown_propensity / max(1, answer.interactions)
    reactions = ", ".join(f"{name} {n}" for name, n in sorted(answer.reaction_counts.items()))
    print_facts(
        (
            ("period", f"{when(answer.period_start)} to {when(answer.period_end)}"),
            ("interactions", answer.interactions),
            ("people", answer.users),
            ("average reward", answer.average_reward),
            ("like rate", f"{answer.like_rate:.1%}"),
            ("reactions", reactions),
            ("no usable propensity", f"{answer.unknown_propensity} ({unknown:.1%})"),
            ("unknown state", answer.unknown_state),
            ("trained on before", answer.trained_excluded),
            ("evaluated on", answer.evaluated),
        )
    )
    if answer.HasField("learning_gain"):
        click.echo()
        print_sentence(f"Learning is worth {gain_sentence(answer.learning_gain)}")
    click.echo("\nValue, had it been served (reward a recommendation):\n")
    print_estimates(answer.policies)
    if answer.differences:
        click.echo("\nDifferences (doubly robust, same interactions):\n")
        print_differences(answer.differences)
    click.echo("\nObjectives (* no other policy is at least as good in all):\n")
    names = [one.objective for one in answer.policies[0].objectives] if answer.policies else []
    print_table(
        ("", "policy", *names),
        (
            (
                "*" if one.pareto_optimal else "",
                one.name,
                *(
                    f"{o.estimate.value:.3f}" if o.estimate.HasField("value") else "-"
                    for o in one.objectives
                ),
            )
            for one in answer.policies
        ),
    )
    for one in answer.policies:
        if not one.training_known:
            print_sentence(f"{one.name} was imported: nobody knows what it was trained on")
