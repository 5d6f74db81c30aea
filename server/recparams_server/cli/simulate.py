"""`recparams simulate`: simulated people on a running server."""

import json
import secrets
import time

import click
import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recparams.v1 import recommendation_pb2_grpc as grpc_pb
from recparams_rl.reward import RewardWeights
from recparams_server.cli.connection import (
    admin_metadata,
    fail,
    json_option,
    open_channel,
    server_options,
)
from recparams_server.cli.output import print_facts
from recparams_simulation.crowd import Crowd, play_visits, put_profiles
from recparams_simulation.people.population import WEEK, draw_population, draw_visits


@click.command()
@click.option("--decisions", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--people", type=click.IntRange(1, 1_000_000), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@server_options
@json_option
def simulate(
    decisions: int,
    people: int,
    seed: int,
    address: str,
    admin_key: str | None,
    as_json: bool,
) -> None:
    """Let simulated people use a running server.

    They ask for at least so many decisions, react, and are recorded, in the week that ends now.
    Not for a server that real people use: what they do is trained on like anything else.

    \b
    recparams simulate --decisions 50000 --people 2000
    """
    try:
        facts = uvloop.run(_simulate(address, admin_key, decisions, people, seed))
    except grpc.aio.AioRpcError as raised:
        fail(raised, address)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        print_facts([(name.replace("_", " "), value) for name, value in facts.items()])


async def _simulate(
    address: str, admin_key: str | None, decisions: int, people: int, seed: int
) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    # A name of its own for each run, so that nothing of an earlier one counts as a duplicate.
    crowd = Crowd(
        f"simulated-{secrets.token_hex(4)}",
        draw_population(rng, people),
        RewardWeights(),
        admin_metadata(admin_key),
    )
    end = int(time.time())
    interactions, total_reward, likes = 0, 0.0, 0
    columns = (
        TextColumn("decisions"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    async with open_channel(grpc.aio, address) as channel:
        stub = grpc_pb.RecommendationServiceStub(channel)
        await put_profiles(stub, crowd)
        began = time.perf_counter()
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=decisions)
            while interactions < decisions:
                visits = draw_visits(rng, crowd.population, np.arange(people), end - WEEK)
                lived = await play_visits(
                    stub,
                    crowd,
                    visits[: decisions - interactions],
                    rng,
                    until=end,
                    on_visits=lambda count: bar.advance(task, count),
                )
                interactions += lived.interactions
                total_reward += lived.total_reward
                likes += lived.likes
                bar.update(task, completed=interactions)
        seconds = time.perf_counter() - began
    return {
        "people": people,
        "user_ids": f"{crowd.user_id(0)} to {crowd.user_id(people - 1)}",
        "interactions": interactions,
        "average_reward": round(total_reward / interactions, 4),
        "like_rate": round(likes / interactions, 4),
        "seconds": round(seconds, 2),
        "decisions_per_second": round(interactions / seconds),
    }
