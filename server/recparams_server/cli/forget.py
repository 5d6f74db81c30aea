"""`recparams forget`: delete what is stored about one person."""

import click

from recparams.v1 import system_pb2 as pb
from recparams.v1 import system_pb2_grpc as grpc_pb
from recparams_server.cli.connection import admin_call, json_option, server_options
from recparams_server.cli.output import print_json

# Longer than the server waits for inserts under way.
LONG_SECONDS = 90.0


@click.command()
@click.argument("user_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@server_options
@json_option
def forget(user_id: str, yes: bool, address: str, admin_key: str | None, as_json: bool) -> None:
    """Delete one person's interactions, profile and user for good.

    What model versions have learned from the person remains in them. Interactions that are sent
    afterwards make the person anew.

    \b
    recparams forget ada
    recparams forget ada --yes --json
    """
    if not yes:
        click.confirm(f"Delete everything stored about {user_id}?", abort=True, err=True)
    deleted = admin_call(
        grpc_pb.SystemServiceStub,
        "DeleteUserData",
        pb.DeleteUserDataRequest(user_id=user_id),
        address,
        admin_key,
        LONG_SECONDS,
    )
    if as_json:
        print_json(deleted)
    elif deleted.users:
        click.echo(
            f"deleted {user_id}: {deleted.interactions} interactions, {deleted.profiles} profiles"
        )
    else:
        click.echo(f"nothing is stored about {user_id}")
