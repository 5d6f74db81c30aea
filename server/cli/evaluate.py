"""`recparams evaluate`: how people reacted lately."""

from datetime import datetime

import click

from recparams.v1 import training_pb2 as pb
from recparams.v1 import training_pb2_grpc as grpc_pb
from server.cli.connection import admin_call, json_option, server_options
from server.cli.options import int32, moment
from server.cli.output import print_facts, print_json, when
from server.cli.train import timestamp

SECONDS = 600.0


@click.command()
@click.option("--days", type=int32, help="Length of the period in days. [default: 3]")
@click.option("--as-of", type=moment, help="End of the period, UTC. [default: now]")
@server_options
@json_option
def evaluate(
    days: int | None, as_of: datetime | None, address: str, admin_key: str | None, as_json: bool
) -> None:
    """Average reward, like rate and reactions of the last days.

    \b
    recparams evaluate --days 7
    """
    answer = admin_call(
        grpc_pb.TrainingServiceStub,
        "Evaluate",
        pb.EvaluateRequest(test_days=days, as_of=timestamp(as_of)),
        address,
        admin_key,
        SECONDS,
    )
    if as_json:
        print_json(answer)
        return
    reactions = ", ".join(f"{name} {n}" for name, n in sorted(answer.reaction_counts.items()))
    print_facts(
        (
            ("period", f"{when(answer.period_start)} to {when(answer.period_end)}"),
            ("interactions", answer.interactions),
            ("people", answer.users),
            ("average reward", answer.average_reward),
            ("like rate", f"{answer.like_rate:.1%}"),
            ("reactions", reactions),
            ("without propensity", answer.unknown_propensity),
        )
    )
