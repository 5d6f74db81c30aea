"""Serving and recording at scale: what one machine takes, measured, and replicas, simulated.

`python -m benchmarks.fleet` prints the tables of docs/scale.md.
"""

import click
import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.recording import record
from benchmarks.report import Table

RATE = 100_000
"""Decisions a second, of the fleet."""

PER_DAY = 86_400


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
@click.option("--messages", default=600, help="Messages to record.")
@click.option("--service", default=195.0, help="Microseconds of a decision, from RESULTS.md.")
def main(messages: int, service: float) -> None:
    """Measure recording, simulate replicas, and work out what a day at 100,000/s takes."""
    recorded = record(messages)
    a_second, each = recorded.per_second, recorded.size
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
