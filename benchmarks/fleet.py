"""Serving and recording at scale: what one machine takes, measured, and replicas, simulated.

`python -m benchmarks.fleet` prints the tables of docs/scale.md.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import asyncpg
import click
import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.database import make_database, postgres
from benchmarks.measure import cores
from benchmarks.report import Table
from benchmarks.servers import running, scores
from recparams_client import DecisionRequest, Interaction, PersonalityProfile, RecParamsClient

RATE = 100_000
"""Decisions a second, of the fleet."""

BATCH = 500
PER_DAY = 86_400


def record(seconds: float, callers: int = 4) -> tuple[float, float]:
    """Interactions a second that one server stores, in messages of `BATCH`, and bytes of each.

    Server, Postgres and callers share the machine.
    """
    serving, _ = cores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        url = make_database(stack.enter_context(postgres()), "recording", 0)
        port, _ = stack.enter_context(running("real", serving, url, scratch))
        client = stack.enter_context(
            RecParamsClient(f"127.0.0.1:{port}", decision_timeout=10, write_timeout=30)
        )
        asked = [_request(person) for person in range(BATCH)]
        tokens = [
            (one.user_id, answer.decision_token)
            for i in range(0, BATCH, 250)
            for one, answer in zip(
                asked[i : i + 250],
                client.batch_get_recommendation_params(asked[i : i + 250]),
                strict=True,
            )
        ]
        until = time.perf_counter() + seconds

        def caller() -> int:
            stored = 0
            while time.perf_counter() < until:
                batch = [
                    Interaction(user, token, ("complete",), interaction_id=uuid4().hex)
                    for user, token in tokens
                ]
                stored += client.record_interactions(batch).recorded
            return stored

        began = time.perf_counter()
        with ThreadPoolExecutor(callers) as pool:
            stored = sum(one.result() for one in [pool.submit(caller) for _ in range(callers)])
        spent = time.perf_counter() - began
        return stored / spent, asyncio.run(_bytes(url)) / stored


async def _bytes(url: str) -> float:
    """Of everything that grows with interactions: the tables, what holds their ids, and indexes."""
    db = await asyncpg.connect(url)
    await db.execute("VACUUM ANALYZE")
    size = await db.fetchval(
        """
        SELECT sum(pg_total_relation_size(oid)) FROM pg_class
        WHERE relkind = 'r' AND relname LIKE 'interaction%'
        """
    )
    await db.close()
    return float(size)


def _request(person: int) -> DecisionRequest:
    personality = PersonalityProfile(*scores(person))
    return DecisionRequest(f"person-{person}", "music", "calm", "evening", personality=personality)


@njit(cache=True)
def _waits(arrivals: NDArray[np.float64], service: float) -> NDArray[np.float64]:
    """Seconds from arrival to answer at one server that takes calls in turn (Lindley 1952)."""
    took = np.empty(len(arrivals))
    free_at = 0.0
    for i in range(len(arrivals)):
        free_at = max(free_at, arrivals[i]) + service
        took[i] = free_at - arrivals[i]
    return took


def simulate(replicas: int, service: float, seconds: float = 20.0) -> tuple[float, float, float]:
    """Utilisation, and p50 and p99 in seconds, of calls that arrive at random at `RATE`.

    Callers go round the replicas, many of them and each on its own, so each replica sees calls at
    random too.
    """
    rng = np.random.default_rng(1)
    rate = RATE / replicas
    arrivals = np.cumsum(rng.exponential(1.0 / rate, size=int(rate * seconds)))
    took = _waits(arrivals, service)
    p50, p99 = np.quantile(took, (0.5, 0.99))
    return rate * service, float(p50), float(p99)


@click.command()
@click.option("--seconds", default=15.0, help="How long to record.")
@click.option("--service", default=195.0, help="Microseconds of a decision, from RESULTS.md.")
def main(seconds: float, service: float) -> None:
    """Measure recording, simulate replicas, and work out what a day at 100,000/s takes."""
    a_second, each = record(seconds)
    click.echo(
        f"one server and its Postgres record {a_second:,.0f} rows/s, {each:.0f} bytes each\n"
    )
    least = int(np.ceil(RATE * service / 1e6))
    rows = []
    for replicas in (least + 1, round(least * 1.15), round(least * 1.4), 2 * least):
        busy, p50, p99 = simulate(replicas, service / 1e6)
        rows.append((str(replicas), f"{busy:.0%}", f"{1e3 * p50:.2f}", f"{1e3 * p99:.2f}"))
    click.echo(Table(("replicas, a core each", "busy", "p50, ms", "p99, ms"), rows).markdown())
    click.echo()
    rows = [
        (
            f"{share:.0%}",
            f"{RATE * share:,.0f}",
            f"{RATE * share / a_second:,.1f}",
            f"{RATE * share * PER_DAY * each / 1e9:,.0f}",
            f"{7 * RATE * share * PER_DAY:.2g}",
        )
        for share in (1.0, 0.1, 0.01, 0.001)
    ]
    columns = ("share recorded", "rows/s", "times one machine", "GB a day", "rows a week")
    click.echo(Table(columns, rows).markdown())


if __name__ == "__main__":
    main()
