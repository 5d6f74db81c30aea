"""A version change: how fast a model loads, and what requests feel of it.

`python -m benchmarks.swap` is the client, in a process of its own.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import asyncpg
import grpc
import numpy as np
import uvloop

from benchmarks.database import make_database, postgres
from benchmarks.measure import Effort, cores, side_by_side
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import DECIDE, request, running
from benchmarks.synthetic import ACTIONS_TRIED, random_model
from recparams.v1 import recommendation_pb2 as pb
from recparams_rl import q_table
from recparams_rl.action import N_ACTIONS
from recparams_rl.state import StateSpace
from recparams_server.store import activations, models

CALLERS = 4
INTERVAL = 0.004
"""Seconds between two requests of a caller."""

OURS, TEXT, TUPLES = "ours", "JSON, text keys", "JSON, tuple keys"


@dataclass(frozen=True)
class Felt:
    """What the requests of a round met.

    Attributes:
        took: seconds, of each request.
        delays: seconds from the start of each activation to the first answer of its version.
    """

    took: list[float]
    delays: list[float]


def run(effort: Effort, folder: Path) -> Section:
    """Loading by size, then requests during swaps of the largest; writes no file."""
    rng = np.random.default_rng(3)
    server_core, client_core = cores()
    rows: list[Sequence[str]] = []
    versions: list[int] = []
    quiet: list[Felt] = []
    swapped: list[Felt] = []
    with tempfile.TemporaryDirectory() as data, postgres() as database:
        url = make_database(database, "swap", 0)
        for percent in (1,) if effort.quick else (1, 10, 100):
            states = effort.space.n_states * percent // 100
            model = random_model(rng, states, effort.space, effort.smoothing)
            versions.append(store(url, model))
            text = _seed_json(model)
            spent = _loading(url, versions[-1], model.policy.space, text, rounds=effort.of(3, 1))
            rows.append(
                (
                    f"{percent} %",
                    f"{len(text) / 1e6:,.1f} MB",
                    *(f"{spent[name] * 1e3:,.1f} ms" for name in (OURS, TEXT, TUPLES)),
                    f"{spent[TEXT] / spent[OURS]:,.1f}",
                )
            )
        del text
        both = versions[-1], store(url, model)
        with running("real", server_core, url, data, settings=effort.settings) as (port, _):
            for _ in range(effort.of(4, 1)):
                for felt, swaps in ((quiet, False), (swapped, True)):
                    felt.append(_client(port, client_core, url, both, effort.of(4, 1), swaps=swaps))
    p99, p99_swapped = (_quantile(felt, 0.99) for felt in (quiet, swapped))
    delays = [1e3 * delay for felt in swapped for delay in felt.delays]
    return Section(
        "Version change",
        [
            "*Loading*: ours is what the server does when another version is activated: fetch the "
            "policy over asyncpg, check it, decompress it, build it. The reference is the seed's "
            "file, {state: {action: value}}, already read into memory as text: `json.loads` into "
            "dicts of dicts under the text keys of the file, and the same with the keys made "
            f"tuples by `literal_eval`. In each visited state {ACTIONS_TRIED} of {N_ACTIONS} "
            "actions were tried. The ratio is to the cheaper reference. What is compared serves "
            "the same decisions but is not the same thing: ours was reduced to one action a state "
            "when it was stored, and stays the same size however few states were visited.",
            Table(("states visited", "seed's file", OURS, TEXT, TUPLES, "text keys / ours"), rows),
            f"*Requests during swaps*: a server on one core, a client on another with {CALLERS} "
            f"callers, each due to ask every {INTERVAL * 1e3:g} ms; a request that is late because "
            "the one before it was slow counts from when it was due. Rounds with a new version "
            "activated every second and rounds without take turns; the times are medians of "
            "rounds. The client activates; it and the database, which is pinned to no core, are "
            "part of what is felt.",
            Table(
                ("", "requests", "p50", "p99", "slowest"),
                [_felt_row("without swaps", quiet), _felt_row("with swaps", swapped)],
            ),
            f"The slowest of all took {_slowest(quiet):.1f} ms without and "
            f"{_slowest(swapped):.1f} ms with swaps. From the start of the activating transaction "
            f"to the first answer of the new version: median {statistics.median(delays):.1f} ms, "
            f"at most {max(delays):.1f} ms, of {len(delays)} activations.",
        ],
        goals=[
            Goal(
                "model load at version change",
                "the seed's JSON into dicts",
                spent[TEXT] / spent[OURS],
                60,
                shortfall=f"{spent[OURS] * 1e3:.1f} ms against {spent[TEXT] * 1e3:.1f} ms",
            ),
            Goal(
                "slowest 1 % of requests during swaps once a second",
                "the same without swaps",
                p99_swapped / p99,
                2.0,
                at_most=True,
                shortfall=f"{p99_swapped:.2f} ms against {p99:.2f} ms; loading "
                f"takes {spent[OURS] * 1e3:.1f} ms, and the event loop answers nobody while it "
                "checks and builds the policy",
            ),
        ],
    )


def store(url: str, model: models.NewModel) -> int:
    """Stores a model in a database; returns its version."""

    async def insert() -> int:
        connection = await asyncpg.connect(url)
        version = await models.insert(connection, models.encode(model))
        await connection.close()
        return version

    return asyncio.run(insert())


def _seed_json(model: models.NewModel) -> str:
    """The table as the seed wrote it: without visit counts, which `dump` adds."""
    table = q_table.QTable(model.space, model.q, model.visits, model.rewards, model.hyperparameters)
    return json.dumps(json.loads("".join(q_table.dump(table)))["q_table"])


def _loading(
    url: str, version: int, serving: StateSpace, text: str, *, rounds: int
) -> dict[str, float]:
    # Not asyncio.Runner: its `run` makes text of the policy it returns, half of the time measured.
    loop = uvloop.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(url))
    spent = side_by_side(
        {
            OURS: lambda: loop.run_until_complete(models.load_policy(connection, version, serving)),
            TEXT: partial(json.loads, text),
            TUPLES: partial(_load_tuples, text),
        },
        rounds=rounds,
    )
    loop.run_until_complete(connection.close())
    loop.close()
    return spent


def _load_tuples(text: str) -> dict[tuple[int | str, ...], dict[tuple[str, str, str], float]]:
    action = cache(literal_eval)
    return {
        literal_eval(state): {action(key): value for key, value in row.items()}
        for state, row in json.loads(text).items()
    }


def _quantile(rounds: Sequence[Felt], share: float) -> float:
    """Milliseconds within which such a share of a round's requests was answered, in the median."""
    return 1e3 * statistics.median(float(np.quantile(felt.took, share)) for felt in rounds)


def _slowest(rounds: Sequence[Felt]) -> float:
    return 1e3 * max(max(felt.took) for felt in rounds)


def _felt_row(name: str, rounds: Sequence[Felt]) -> tuple[str, ...]:
    times = (f"{_quantile(rounds, share):.2f} ms" for share in (0.5, 0.99, 1.0))
    return (name, f"{sum(len(felt.took) for felt in rounds):,}", *times)


def _client(
    port: int, core: int, url: str, versions: tuple[int, int], seconds: int, *, swaps: bool
) -> Felt:
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.swap"]
    command += [str(port), url, *map(str, versions), str(seconds), str(int(swaps))]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60 + 2 * seconds
    )
    return Felt(**json.loads(done.stdout))


async def _ask(port: int, url: str, versions: tuple[int, int], seconds: int, swaps: bool) -> Felt:
    felt = Felt([], [])
    activating: dict[int, float] = {}
    connection = await asyncpg.connect(url)

    async def swap() -> None:
        current = (await activations.current_activation(connection)).version
        version = versions[current == versions[0]]
        activating[version] = time.perf_counter()
        async with connection.transaction():
            await activations.activate(connection, version, 0.0, "benchmark")

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            DECIDE,
            pb.GetRecommendationParamsRequest.SerializeToString,
            pb.GetRecommendationParamsResponse.FromString,
        )
        await call(request(0))
        start = time.perf_counter()

        async def caller(number: int) -> None:
            for turn in range(int(seconds / INTERVAL)):
                due = start + (turn + number / CALLERS) * INTERVAL
                began = due
                if (pause := due - time.perf_counter()) > 0:
                    await asyncio.sleep(pause)
                    # The timer's own lateness is not the server's.
                    began = time.perf_counter()
                answer = await call(request(turn * CALLERS + number))
                ended = time.perf_counter()
                felt.took.append(ended - began)
                if activated := activating.pop(answer.model_version, None):
                    felt.delays.append(ended - activated)

        async def swapper() -> None:
            for second in range(seconds):
                await asyncio.sleep(start + second + 0.5 - time.perf_counter())
                await swap()

        callers = [caller(number) for number in range(CALLERS)]
        await asyncio.gather(*callers, *([swapper()] if swaps else []))
    await connection.close()
    return felt


if __name__ == "__main__":
    port, url, first, second, seconds, swaps = sys.argv[1:]
    both = int(first), int(second)
    json.dump(
        asdict(uvloop.run(_ask(int(port), url, both, int(seconds), swaps == "1"))), sys.stdout
    )
