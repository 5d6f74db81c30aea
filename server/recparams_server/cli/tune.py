"""`recparams tune`: which learner and which hyperparameters suit one's own people."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from recparams.v1 import training_pb2_grpc as grpc_pb
from recparams.v1 import tuning_pb2 as pb
from recparams_server.cli.connection import (
    Exit,
    admin_metadata,
    channel,
    json_option,
    server_options,
)
from recparams_server.cli.options import int32, moment
from recparams_server.cli.output import print_facts, print_json, print_table, when
from recparams_server.cli.train import timestamp
from recparams_server.cli.tuning_output import (
    settings_lines,
    table_rows,
    tuning_notes,
    tuning_sentence,
)


@click.command()
@click.option("--days", type=int32, help="Length of the period in days. [default: 28]")
@click.option("--as-of", type=moment, help="End of the period, UTC. [default: now]")
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="That all intervals hold together.",
)
@click.option(
    "--chart",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the differences as a picture; the file's ending says which kind (.png, .svg).",
)
@server_options
@json_option
def tune(
    days: int | None,
    as_of: datetime | None,
    confidence: float,
    chart: Path | None,
    address: str,
    admin_key: str | None,
    as_json: bool,
) -> None:
    """Find which learner and which hyperparameters suit your people, by what they did.

    A grid of about twenty configurations, each the settings in force but for one thing: another
    algorithm, learning rate, discount, caution, number of serving bins, or exploration. Each learns
    the earlier half of the period; what it would have served is valued on the later half, doubly
    robust, as a difference to the settings in force. Intervals count people, and hold all together:
    it does not matter how many were looked at. A few minutes; Ctrl-C stops it.

    Nothing that is served or learned changes. Where nothing is shown to be better, it says that it
    cannot tell, and to keep the settings. Telling takes exploration in the log (propensities below
    1), and many people: with 30,000 interactions that explore 30 %, differences of 0.1 to 0.2.

    \b
    recparams tune
    recparams tune --days 90 --chart tuning.png
    recparams tune --json | jq .configurations[].difference

    The last result is in `recparams evaluate --html` as well.
    """
    if chart is not None and not find_spec("matplotlib"):
        click.echo("recparams: --chart needs more: pip install 'recparams[report]'", err=True)
        raise SystemExit(Exit.FAILED)
    request = pb.TuneRequest(days_back=days, as_of=timestamp(as_of), confidence=confidence)
    with channel(address) as opened:
        call = grpc_pb.TrainingServiceStub(opened).Tune(request, metadata=admin_metadata(admin_key))
        try:
            found = _followed(call)
        except KeyboardInterrupt:
            call.cancel()
            click.echo("recparams: stopped; nothing was changed", err=True)
            raise SystemExit(130) from None
    if as_json:
        print_json(found)
    else:
        print_tuning(found)
    if chart is not None:
        _draw(found, chart)
        click.echo(f"\nchart: {chart}", err=as_json)


def _followed(responses: Iterator[pb.TuneResponse]) -> pb.Tuning:
    """Returns what was found; shows how far it is on stderr, as a bar or by lines."""
    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    columns = TextColumn("{task.percentage:3.0f} %"), BarColumn(bar_width=24), TimeElapsedColumn()
    found = pb.Tuning()
    with Progress(
        *columns,
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bar = progress.add_task("starting", total=1.0)
        for response in responses:
            progress.update(bar, description=response.stage, completed=response.progress)
            if not console.is_terminal:
                console.print(f"{response.progress:4.0%} {response.stage}")
            found = response.tuning
    return found


def print_tuning(found: pb.Tuning) -> None:
    """Prints a tuning for people."""
    print_facts(
        (
            ("period", f"{when(found.period_start)} to {when(found.period_end)}"),
            ("interactions", f"{found.interactions}, of which {found.read} were read"),
            ("learned from", f"{found.learned} before {when(found.split_at)}"),
            ("valued on", f"{found.valued} after it, of {found.valued_users} people"),
            ("no usable propensity", f"{found.unknown_propensity} after it"),
        )
    )
    click.echo("\nReward a recommendation, and the difference to the present settings:\n")
    print_table(
        ("configuration", "value", "differs", "interval", ""),
        table_rows(found),
    )
    for note in tuning_notes(found):
        click.echo(f"\n{note}")
    click.echo(f"\n{tuning_sentence(found)}")
    lines = settings_lines(found)
    if lines:
        click.echo("\nSettings to write, followed by `recparams train --wait --mode rebuild`:\n")
        for line in lines:
            click.echo(line)


def _draw(found: pb.Tuning, file: Path) -> None:
    from recparams_server.cli.tuning_chart import draw

    with contextlib.ExitStack() as failing:
        failing.callback(file.unlink, missing_ok=True)
        try:
            draw(found, file)
        except (OSError, ValueError) as failure:
            click.echo(f"recparams: {file}: {failure}", err=True)
            raise SystemExit(Exit.FAILED) from None
        failing.pop_all()
