"""`recparams rollout`: shares of the people, and the comparison of the arms."""

from collections.abc import Iterable
from typing import Any

import click
from google.protobuf.message import Message

from recparams.v1 import rollout_pb2 as pb
from recparams.v1 import rollout_pb2_grpc as grpc_pb
from recparams_rl.arms import RULES_VERSION
from recparams_rl.evaluation.sample_ratio import MISMATCH
from recparams_server.cli.connection import admin_call, json_option, server_options
from recparams_server.cli.options import int64, percent
from recparams_server.cli.output import (
    enum_name,
    print_facts,
    print_json,
    print_sentence,
    print_table,
    version_name,
    when,
    when_listed,
)

LONG_SECONDS = 600.0
_WORDS = {
    pb.VERDICT_BETTER: "better",
    pb.VERDICT_WORSE: "worse",
    pb.VERDICT_UNDECIDED: "undecided",
}


def call(
    method: str, request: Message, address: str, admin_key: str | None, timeout: float = 30.0
) -> Any:
    """Returns the answer of RolloutService; errors end the program with one line."""
    stub = grpc_pb.RolloutServiceStub
    return admin_call(stub, method, request, address, admin_key, timeout)


@click.group()
def rollout() -> None:
    """Serve a version to a share of the people, and compare it.

    \b
    recparams rollout set --version 12 --step canary    10 % of the people
    recparams rollout next                              50 %, then 100 %
    recparams rollout experiment                        how the arms compare
    recparams models rollback                           back to what was before
    """


@rollout.command()
@click.option("--history", is_flag=True, help="Earlier states too, newest first.")
@server_options
@json_option
def show(history: bool, address: str, admin_key: str | None, as_json: bool) -> None:
    """Show which versions are served, and to which shares of the people.

    \b
    recparams rollout show --history
    """
    answer = call("GetRollout", pb.GetRolloutRequest(), address, admin_key)
    if as_json:
        print_json(answer)
        return
    _print_rollout(answer.rollout)
    if history and answer.history:
        click.echo()
        _print_history(answer.history)


@rollout.command("set")
@click.argument("share", type=percent, metavar="[PERCENT]", required=False)
@click.option("--step", default="", help="A configured step (see show), or next.")
@click.option("--version", type=int64, help="[default: the one being rolled out]")
@click.option(
    "--rule-based-percent",
    type=percent,
    help="Share to keep on the hand-written rules. [default: as it is]",
)
@click.option("--reason", default="", help="For the record.")
@server_options
@json_option
def set_rollout(
    share: float | None,
    step: str,
    version: int | None,
    rule_based_percent: float | None,
    reason: str,
    address: str,
    admin_key: str | None,
    as_json: bool,
) -> None:
    """Move a version to a share of the people.

    Whoever has it already keeps it while the share grows.

    \b
    recparams rollout set --version 12            begin with the first step
    recparams rollout set 25                      25 % of the people
    recparams rollout set 90 --rule-based-percent 10
    """
    if share is not None and step:
        raise click.UsageError("a share or a --step, not both")
    target: dict[str, Any] = {"percent": share} if share is not None else {}
    if step:
        target = {"step": step}
    request = pb.SetRolloutRequest(
        version=version, rule_based_percent=rule_based_percent, reason=reason, **target
    )
    _moved(call("SetRollout", request, address, admin_key), as_json)


@rollout.command("next")
@click.option("--reason", default="", help="For the record.")
@server_options
@json_option
def next_step(reason: str, address: str, admin_key: str | None, as_json: bool) -> None:
    """Take the next step of the ramp.

    \b
    recparams rollout next --reason "a week without complaints"
    """
    request = pb.SetRolloutRequest(step="next", reason=reason)
    _moved(call("SetRollout", request, address, admin_key), as_json)


@rollout.command()
@click.argument("experiment_id", type=int64, default=0, metavar="[ID]")
@server_options
@json_option
def experiment(experiment_id: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Compare the arms of a rollout; by default of the newest.

    The interval holds at all times together: looking every day is safe.

    \b
    recparams rollout experiment
    """
    request = pb.GetExperimentRequest(experiment_id=experiment_id)
    answer = call("GetExperiment", request, address, admin_key, LONG_SECONDS)
    if as_json:
        print_json(answer)
        return
    ended = when(answer.ended_at) if answer.HasField("ended_at") else "now"
    click.echo(f"experiment {answer.experiment_id}, {when(answer.started_at)} to {ended}\n")
    print_table(
        ("arm", "serves", "people", "interactions", "reward", "like rate"),
        (
            (
                enum_name(arm, "arm"),
                version_name(arm.version),
                arm.users,
                arm.interactions,
                arm.average_reward,
                f"{arm.like_rate:.1%}",
            )
            for arm in answer.arms
        ),
    )
    click.echo()
    for one in answer.differences:
        print_sentence(_sentence(one, answer))
    if answer.sample_ratio_p_value < MISMATCH:
        print_sentence(
            "sample ratio mismatch: the arms do not have their shares of the people (p "
            f"{answer.sample_ratio_p_value:.2g}), so this comparison is not to be trusted"
        )


def _sentence(one: pb.ArmDifference, answer: pb.GetExperimentResponse) -> str:
    other = enum_name(one, "other")
    if not one.HasField("low"):
        return f"rl against {other}: undecided, fewer than {answer.burn_in_users} people in an arm"
    sure = f"{1 - answer.alpha / len(answer.differences):.4g}"
    return (
        f"rl against {other}: {_WORDS[one.verdict]}, {one.difference:+.4f} reward an interaction "
        f"({one.low:+.4f} to {one.high:+.4f} at all times with probability {sure})"
    )


def _moved(answer: pb.SetRolloutResponse, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        _print_rollout(answer.rollout)


def _print_rollout(current: pb.Rollout) -> None:
    steps = ", ".join(f"{step.name} {step.percent:g} %" for step in current.steps)
    facts: list[tuple[str, object]] = [
        (enum_name(arm, "arm"), f"{arm.percent:g} % of the people: {version_name(arm.version)}")
        for arm in current.arms
    ]
    if current.holdback_percent:
        rules = version_name(RULES_VERSION)
        facts.append(("held back", f"{current.holdback_percent:g} % of the people: {rules}"))
    facts += [
        ("since", f"{when(current.changed_at)}{' by itself' if current.automatic else ''}"),
        ("reason", current.reason or "-"),
        ("steps", steps),
        ("experiment", current.experiment_id or "none: everybody is served alike"),
    ]
    if current.waiting_version:
        facts.append(("waiting", version_name(current.waiting_version)))
    if current.shadow_version:
        facts.append(("shadow", version_name(current.shadow_version)))
    print_facts(facts)


def _print_history(history: Iterable[pb.Rollout]) -> None:
    print_table(
        ("since (UTC)", "version", "people", "others", "on rules", "by"),
        (
            (
                when_listed(one.changed_at),
                one.version or "rules",
                f"{one.percent:g} %",
                (one.baseline_version or "rules") if one.percent < 100 else "-",
                f"{one.rule_based_percent:g} %",
                "itself" if one.automatic else "request",
                one.reason,
            )
            for one in history
        ),
        notes="reason",
    )
