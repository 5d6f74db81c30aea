"""`recparams demo`: watch the service learn."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import grpc
import uvloop
from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from recparams_rl.learners.registry import DEFAULT_ALGORITHM, LEARNERS
from recparams_server.store.embedded import stop_postgres
from recparams_simulation.demo import HELD_OUT_PEOPLE, DemoError, Plan, Week, simulate_weeks
from recparams_simulation.demo_server import LOG, free_port, fresh_folder, running_server

HOST = "127.0.0.1"
USUAL_SEED = 1
LEAST_WIDTH = 80
GROUPS = (
    ("", 4),
    ("", 8),
    ("average reward", 21),
    ("like rate", 19),
    ("regret", 14),
    ("states", 7),
)
COLUMNS = (
    ("week", 4),
    ("recorded", 8),
    ("RL", 7),
    ("rules", 6),
    ("random", 6),
    ("RL", 6),
    ("rules", 5),
    ("random", 6),
    ("RL", 7),
    ("rules", 6),
    ("covered", 7),
)


@click.command()
@click.option("--once", is_flag=True, help="Stop the server at the end instead of leaving it up.")
@click.option("--weeks", type=click.IntRange(1, 25), default=8, show_default=True)
@click.option("--people", type=click.IntRange(10, 100_000), default=2000, show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Repeats the same table to the last figure: people, visits, and what the server tries by "
    "chance. Versions that pass the gates then are served to everybody at once, since steps of a "
    "rollout go by the clock. [default: the same people each time, and other chance]",
)
@click.option(
    "--algorithm",
    type=click.Choice(list(LEARNERS)),
    default=DEFAULT_ALGORITHM,
    show_default=True,
    help="What learns.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=50051,
    show_default=True,
    envvar="RECPARAMS_PORT",
    show_envvar=True,
)
@click.option(
    "--png",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    default=Path("demo-learning-curve.png"),
    show_default=True,
    help="Where to draw the learning curve.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".recparams") / "demo",
    show_default=True,
    help="Folder of the demo's own database, emptied at the start.",
)
def demo(
    once: bool,
    weeks: int,
    people: int,
    seed: int | None,
    algorithm: str,
    port: int,
    png: Path,
    data_dir: Path,
) -> None:
    """Watch the service learn from simulated people.

    Starts a server on an embedded Postgres. Simulated people with known preferences use it over
    gRPC for some weeks, and after each it is trained on what they did. What it has learned is
    measured on people it has never seen. Then the server stays up to be tried, until Ctrl-C.

    \b
    recparams demo
    recparams demo --once --weeks 3 --people 1000
    recparams demo --once --seed 7
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(LEAST_WIDTH, console.width))
    key = secrets.token_urlsafe(18)
    try:
        port = free_port(HOST, port)
        with fresh_folder(data_dir, stop_postgres) as folder:
            console.print(f"Starting a server on {HOST}:{port}, log in {folder / LOG}")
            plan = Plan(people, weeks, USUAL_SEED if seed is None else seed, seed is not None)
            with running_server(folder, HOST, port, key, algorithm, seed) as server:
                address = f"{HOST}:{port}"
                lived = uvloop.run(_show(console, address, key, plan))
                learned = _conclude(console, lived)
                _draw(console, lived, png)
                if not once:
                    _leave_up(server, address, key)
    except DemoError as failure:
        console.print(f"recparams: {failure}", style="red", highlight=False)
        raise SystemExit(1) from None
    except grpc.aio.AioRpcError as failure:
        console.print(
            f"recparams: a call failed ({failure.details()}): see {data_dir / LOG}", style="red"
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped.")
        raise SystemExit(130) from None
    raise SystemExit(0 if learned else 1)


async def _show(console: Console, address: str, key: str, plan: Plan) -> list[Week]:
    """Runs the simulation and prints each week as it is known."""
    console.print(
        f"{plan.people:,} simulated people use it. After each of {plan.weeks} weeks it is trained "
        "on what they did and compared, on people it has never seen, with hand-written rules and "
        "with chance.\n",
        highlight=False,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
    )
    lived: list[Week] = []
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=1.0)

        def report(what: str, done: float) -> None:
            if what != bar.tasks[0].description:
                bar.reset(task, total=1.0, description=what)
            bar.update(task, completed=done)

        console.print(_row([name for name, _ in GROUPS], [w for _, w in GROUPS], "center"))
        console.print(_row([name for name, _ in COLUMNS], [w for _, w in COLUMNS]), style="bold")
        async for week in simulate_weeks(address, key, plan, report):
            lived.append(week)
            console.print(_row(_cells(week), [width for _, width in COLUMNS]))
            if week.rollout:
                why = Padding(f"its version {week.rollout}", (0, 0, 0, 5))
                console.print(why, style="dim", highlight=False)
    return lived


def _row(cells: list[str], widths: list[int], justify: JustifyMethod = "right") -> Table:
    """Returns one line of a table whose columns keep their width while it grows."""
    row = Table.grid(padding=(0, 1))
    for width in widths:
        row.add_column(width=width, justify=justify, no_wrap=True)
    row.add_row(*cells)
    return row


def _cells(week: Week) -> list[str]:
    policies = (week.learned, week.rules, week.random)
    best = week.optimum.reward
    return [
        str(week.number),
        f"{week.recorded.interactions:,}",
        *(f"{policy.reward:.3f}" for policy in policies),
        *(f"{policy.like_rate:.0%}" for policy in policies),
        f"{best - week.learned.reward:.3f}",
        f"{best - week.rules.reward:.3f}",
        f"{week.states:,}",
    ]


def _conclude(console: Console, weeks: list[Week]) -> bool:
    """Prints the outcome. Returns True if the learned policy beats the rules beyond chance."""
    last = weeks[-1]
    low, high = last.gain - last.gain_error, last.gain + last.gain_error
    better = low > 0
    room = last.optimum.reward - last.rules.reward
    closed = (last.learned.reward - last.rules.reward) / room
    recorded = sum(week.recorded.interactions for week in weeks)
    outcome = f"{closed:.0%} of the way from the rules to the best possible"
    console.print(
        f"\nOn {HELD_OUT_PEOPLE} people it has never seen, what it learned from {recorded:,} "
        f"interactions is worth {last.gain:+.3f} a recommendation against the rules (95 % interval "
        f"{low:+.3f} to {high:+.3f}): {outcome if better else 'not clearly better than them yet'}.",
        highlight=False,
    )
    return better


def _draw(console: Console, weeks: list[Week], png: Path) -> None:
    if find_spec("matplotlib") is None:
        console.print(
            "No picture: matplotlib is not installed (pip install 'recparams[demo]').", markup=False
        )
        return
    from recparams_simulation.learning_curve import draw

    draw(weeks, png)
    console.print(f"Learning curve: {png}", highlight=False)


def _as_pasted(program: str) -> str:
    """Returns how to call a program that may stand beside this Python, and not on the path."""
    beside = Path(sys.executable).parent / program
    if shutil.which(program) is None and beside.exists():
        return os.path.relpath(beside)
    return program


def _leave_up(server: "subprocess.Popen[bytes]", address: str, key: str) -> None:
    """Prints how to try the server and waits until it is stopped."""
    grpcurl, recparams = map(_as_pasted, ("grpcurl", "recparams"))
    admin = f"-H 'x-admin-key: {key}'"
    decide = (
        '{"user_id": "person-0", "content_type": "CONTENT_TYPE_MUSIC", "mood": "MOOD_CALM", '
        '"time_of_day": "TIME_OF_DAY_EVENING"}'
    )
    lines = (
        f"{grpcurl} -plaintext {address} list",
        f"{grpcurl} -plaintext -d '{decide}' \\\n"
        f"  {address} recparams.v1.RecommendationService/GetRecommendationParams",
        f"{grpcurl} -plaintext {admin} {address} recparams.v1.ModelService/GetModel",
        f"{grpcurl} -plaintext {admin} -d '{{\"test_days\": 14}}' \\\n"
        f"  {address} recparams.v1.TrainingService/Evaluate",
        f"{recparams} status",
        f"{recparams} evaluate --days 14",
    )
    click.echo(f"\nThe server is up on {address}. To try it from another terminal:\n")
    for line in lines:
        click.echo(f"{line}\n")
    click.echo(
        "What evaluate says is of the people who used it, estimated from what they did; the table "
        "is of people it has never seen, and exact.\n\nCtrl-C stops it."
    )
    try:
        code = server.wait()
    except KeyboardInterrupt:
        click.echo()
        return
    raise DemoError(f"the server ended with code {code}")
