"""`make soak`: load and faults, and what came of them."""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# Before grpc is imported: Postgres is started by forking, and grpc is not to mind.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import click

from benchmarks.soak.faults import BY_NAME, FAULTS
from benchmarks.soak.report import HEADER, line, markdown
from benchmarks.soak.run import Outcome, Plan, soak
from benchmarks.soak.traffic import Pace

_FAULTS = "\n".join(f"  {fault.name:<17} {fault.about}" for fault in FAULTS)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nFaults, in the order of the first round:\n{_FAULTS}",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="After which no further fault begins; each is there once at least.",
)
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Of the traffic, and of what is broken when.",
)
@click.option("--only", multiple=True, type=click.Choice(list(BY_NAME)), help="Only these faults.")
@click.option(
    "--replicas", type=click.IntRange(2, 16), default=2, show_default=True, help="Servers."
)
@click.option(
    "--bins",
    type=click.IntRange(1, 10),
    default=5,
    show_default=True,
    help="Bins per personality trait; fewer make training quicker.",
)
@click.option(
    "--fault-seconds",
    type=click.FloatRange(0),
    default=8.0,
    show_default=True,
    help="How long a fault lasts.",
)
@click.option(
    "--calm-seconds",
    type=click.FloatRange(0),
    default=8.0,
    show_default=True,
    help="How long it is calm before one.",
)
@click.option(
    "--warm-up-seconds",
    type=click.FloatRange(1),
    default=10.0,
    show_default=True,
    help="Traffic before the first version and the first fault.",
)
@click.option(
    "--train-seconds",
    type=click.FloatRange(1),
    default=30.0,
    show_default=True,
    help="From one training run to the next.",
)
@click.option(
    "--recover-seconds",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Within which everything must work again after a fault.",
)
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the summary, as Markdown.",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the logs of servers and database; by default they are kept only "
    "where something failed.",
)
def main(
    minutes: float,
    seed: int,
    only: tuple[str, ...],
    replicas: int,
    bins: int,
    fault_seconds: float,
    calm_seconds: float,
    warm_up_seconds: float,
    train_seconds: float,
    recover_seconds: float,
    into: Path | None,
    keep: Path | None,
) -> None:
    """Load on real servers and a real Postgres, while one thing after another is broken.

    Clients decide, record, store profiles, train and activate through networks that can be cut.
    After each fault every server must be well again; at the end every acknowledged interaction is
    looked up, trained tables are held to what is stored, and every answer to the version it names.
    Exits with 1 where something that must be 0 is not, or a server does not recover.

    Needs nothing installed or running. As root it also fills the database's disk, a small file
    system that it mounts and takes away again.
    """
    plan = Plan(
        faults=tuple(BY_NAME[name] for name in only) or FAULTS,
        minutes=minutes,
        seed=seed,
        replicas=replicas,
        bins=bins,
        warm_up_seconds=warm_up_seconds,
        fault_seconds=fault_seconds,
        calm_seconds=calm_seconds,
        recover_seconds=recover_seconds,
        pace=Pace(train_seconds=train_seconds),
    )
    # Ended by a signal, it still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="recparams-soak-"))
    failed = True
    try:
        outcome = _run(plan, folder)
        failed = outcome.failed
        click.echo(f"\n{markdown(outcome)}")
        if into is not None:
            into.write_text(markdown(outcome))
    finally:
        kept = keep or Path(f"{folder}-logs") if failed or keep else None
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
            for log in (*folder.glob("*.log"), *folder.glob("pooler/*.log")):
                shutil.copy(log, kept)
            click.echo(f"logs: {kept}", err=True)
        shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(int(failed))


def _run(plan: Plan, folder: Path) -> Outcome:
    click.echo(HEADER)
    began = time.monotonic()
    return asyncio.run(soak(plan, folder, lambda phase: click.echo(line(phase, began))))


if __name__ == "__main__":
    main()
