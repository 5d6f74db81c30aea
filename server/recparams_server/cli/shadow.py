"""`recparams shadow`: score a version on live traffic without serving it."""

import click

from recparams.v1 import rollout_pb2 as pb
from recparams_server.cli.connection import json_option, server_options
from recparams_server.cli.options import int64
from recparams_server.cli.output import (
    print_differences,
    print_estimates,
    print_facts,
    print_json,
    version_name,
    when,
)
from recparams_server.cli.rollout import LONG_SECONDS, call


@click.group()
def shadow() -> None:
    """Score a version on live traffic without serving it.

    \b
    recparams shadow start 12
    recparams shadow show
    recparams shadow stop
    """


@shadow.command()
@click.argument("version", type=int64)
@server_options
@json_option
def start(version: int, address: str, admin_key: str | None, as_json: bool) -> None:
    """Shadow a version from now on.

    \b
    recparams shadow start 12
    """
    _set(version, address, admin_key, as_json)


@shadow.command()
@server_options
@json_option
def stop(address: str, admin_key: str | None, as_json: bool) -> None:
    """Stop shadowing.

    \b
    recparams shadow stop
    """
    _set(0, address, admin_key, as_json)


def _set(version: int, address: str, admin_key: str | None, as_json: bool) -> None:
    answer = call("SetShadow", pb.SetShadowRequest(version=version), address, admin_key)
    if as_json:
        print_json(answer)
    elif version:
        click.echo(f"version {version} is shadowed: recparams shadow show")
    else:
        click.echo("nothing is shadowed")


@shadow.command()
@server_options
@json_option
def show(address: str, admin_key: str | None, as_json: bool) -> None:
    """Show how often the shadowed version agrees, and its estimated value.

    \b
    recparams shadow show
    """
    answer = call("GetShadow", pb.GetShadowRequest(), address, admin_key, LONG_SECONDS)
    if as_json:
        print_json(answer)
        return
    agreed = f"{answer.agreements / answer.decisions:.1%}" if answer.decisions else "-"
    print_facts(
        (
            ("shadow", version_name(answer.version)),
            ("since", when(answer.since)),
            ("decisions", answer.decisions),
            ("agreement", agreed),
        )
    )
    click.echo()
    print_estimates(answer.policies)
    print_differences(answer.differences)
