"""`recparams health`: the health check, which the image's HEALTHCHECK runs."""

import json

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recparams_server.cli.connection import Exit, channel, json_option, server_options

_SECONDS = 5.0
_Status = health_pb2.HealthCheckResponse


@click.command()
@server_options
@json_option
def health(
    address: str,
    admin_key: str | None,  # noqa: ARG001 - health needs no key
    as_json: bool,
) -> None:
    """Ask a server whether it serves.

    \b
    recparams health
    recparams health --address recparams:50051

    \b
    Exit codes:
      0  it serves
      1  it does not: it waits for the database, drains, or cannot be reached
    """
    with channel(address) as opened:
        try:
            check = health_pb2_grpc.HealthStub(opened).Check
            answer = check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError as raised:
            click.echo(f"recparams: {address}: {raised.details()}", err=True)
            raise SystemExit(Exit.FAILED) from None
    status = _Status.ServingStatus.Name(answer.status)
    click.echo(json.dumps({"status": status}) if as_json else status)
    if answer.status != _Status.SERVING:
        raise SystemExit(Exit.FAILED)
