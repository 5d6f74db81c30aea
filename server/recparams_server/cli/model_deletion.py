"""`recparams models delete` and `prune`: versions that nothing uses."""

import click

from recparams.v1 import models_pb2 as pb
from recparams.v1 import models_pb2_grpc as grpc_pb
from recparams_server.cli.connection import admin_call, json_option, server_options
from recparams_server.cli.options import int64
from recparams_server.cli.output import print_json, print_sentence


def _dry_run_option(command: click.decorators.FC) -> click.decorators.FC:
    return click.option("--dry-run", is_flag=True, help="Delete nothing; say what would be.")(
        command
    )


@click.command()
@click.argument("versions", type=int64, nargs=-1, required=True)
@_dry_run_option
@server_options
@json_option
def delete(
    versions: tuple[int, ...], dry_run: bool, address: str, admin_key: str | None, as_json: bool
) -> None:
    """Delete versions for good; what is in use is refused.

    In use are the versions that are served, that rollbacks lead to, that wait or are shadowed, and
    the one that training goes on from. Export one first if it may be wanted again.

    \b
    recparams models export 7 -o 7.json
    recparams models delete 7 8
    """
    request = pb.DeleteModelsRequest(versions=versions, dry_run=dry_run)
    _delete(request, address, admin_key, as_json)


@click.command()
@click.option(
    "--keep",
    type=click.IntRange(1, 1_000_000),
    required=True,
    help="So many of the newest versions are kept, besides those in use.",
)
@_dry_run_option
@server_options
@json_option
def prune(keep: int, dry_run: bool, address: str, admin_key: str | None, as_json: bool) -> None:
    """Delete the oldest versions for good, but for those in use.

    Servers do it by themselves with `recparams serve --retention-versions`, 100 by default.

    \b
    recparams models prune --keep 20 --dry-run
    recparams models prune --keep 20
    """
    _delete(pb.DeleteModelsRequest(keep_newest=keep, dry_run=dry_run), address, admin_key, as_json)


def _delete(
    request: pb.DeleteModelsRequest, address: str, admin_key: str | None, as_json: bool
) -> None:
    answer = admin_call(grpc_pb.ModelServiceStub, "DeleteModels", request, address, admin_key)
    if as_json:
        print_json(answer)
        return
    which = ", ".join(map(str, answer.versions)) or "nothing"
    did = "would delete" if request.dry_run else "deleted"
    print_sentence(f"{did} {which} ({answer.stored_bytes / 2**20:.1f} MiB)")
