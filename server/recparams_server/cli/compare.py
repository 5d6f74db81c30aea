"""`recparams compare`: every algorithm on the same simulated people."""

import json
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from recparams_rl.learners.registry import LEARNERS
from recparams_server.cli.output import print_table
from recparams_simulation.people.worlds import KINDS

_NEEDS = "matplotlib", "scipy"


def _sizes(text: str) -> tuple[int, ...]:
    """Returns whole numbers given by commas. Raises click.BadParameter on anything else."""
    words = text.split(",")
    if not all(word.isascii() and word.isdigit() and len(word) < 9 for word in words):
        raise click.BadParameter(f"{text!r} is not whole numbers by commas, as in 1000,10000.")
    return tuple(map(int, words))


@click.command()
@click.option("--quick", is_flag=True, help="A minute or two: two populations, logs of 10,000.")
@click.option("--seeds", type=click.IntRange(1, 1000), help="Populations.  [default: 5]")
@click.option(
    "--sizes",
    type=_sizes,
    metavar="N,N,...",
    help="Interactions in a log.  [default: 1000,10000,100000]",
)
@click.option(
    "--learner",
    "learners",
    multiple=True,
    type=click.Choice(list(LEARNERS)),
    help="One of our algorithms; may be repeated.  [default: all]",
)
@click.option(
    "--world",
    type=click.Choice(list(KINDS)),
    default="own",
    show_default=True,
    help="Kind of people: what they like, and how far the rules know it.",
)
@click.option(
    "--peers/--no-peers", default=True, show_default=True, help="Outside libraries as well."
)
@click.option(
    "--into",
    type=click.Path(file_okay=False, writable=True, path_type=Path),
    default=Path("comparison"),
    show_default=True,
    help="Folder for compare.md, compare.png and compare.json.",
)
def compare(
    quick: bool,
    seeds: int | None,
    sizes: tuple[int, ...] | None,
    learners: tuple[str, ...],
    world: str,
    peers: bool,
    into: Path,
) -> None:
    """Compare every algorithm on the same simulated people.

    All of ours, the hand-written rules, chance, MABWiser and Vowpal Wabbit learn the same logs, and
    are judged on people who are in none: regret, what the service itself would have estimated, time
    to learn and to decide, size. No server is needed. All of it takes about ten minutes.

    \b
    recparams compare --quick
    recparams compare --seeds 3 --sizes 2000,20000 --learner q_learning --learner lin_ucb

    What is not installed is left out and named: pip install 'recparams[compare,deep]' has it all.
    """
    absent = [name for name in _NEEDS if find_spec(name) is None]
    if absent:
        raise click.ClickException(
            f"{' and '.join(absent)} not installed: pip install 'recparams[compare]'"
        )
    # What takes long to import waits until it is wanted.
    from recparams_simulation.compare.chart import draw
    from recparams_simulation.compare.measure import Plan, Trial, trials
    from recparams_simulation.compare.peers import MABWiser, VowpalWabbit
    from recparams_simulation.compare.report import Results
    from recparams_simulation.compare.systems import (
        Contestant,
        LearnerSystem,
        RandomSystem,
        RulesSystem,
    )

    usual = Plan((10_000,), 2, 8_000, 500) if quick else Plan()
    try:
        plan = Plan(sizes or usual.sizes, seeds or usual.seeds, usual.held_out, usual.visits, world)
    except ValueError as failure:
        raise click.BadParameter(f"{failure}.", param_hint="'--sizes'") from None
    entered: list[Contestant] = [
        RulesSystem(),
        RandomSystem(),
        *map(LearnerSystem, learners or LEARNERS),
    ]
    if peers:
        entered += [
            MABWiser("LinUCB", alpha=1.0),
            MABWiser("LinTS", alpha=1.0),
            VowpalWabbit(epsilon=0.0),
        ]
    console = Console(stderr=True)
    missing = {one.name: one.needs for one in entered if not one.installed}
    for name, module in missing.items():
        console.print(f"Left out: {name}, since {module} is not installed.", highlight=False)
    here = [one for one in entered if one.installed]
    into.mkdir(parents=True, exist_ok=True)

    done: list[Trial] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=len(here) * len(plan.sizes) * plan.seeds)

            def on_next(name: str, size: int, seed: int) -> None:
                what = f"population {seed + 1}, {size:,} interactions, {name}"
                bar.update(task, completed=len(done), description=what)
                new = not done or (done[-1].size, done[-1].seed) != (size, seed)
                if not console.is_terminal and new:
                    console.print(what, highlight=False)

            for trial in trials(plan, here, on_next):
                done.append(trial)  # noqa: PERF402 - on_next reads it meanwhile
            bar.update(task, completed=len(done))
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        raise SystemExit(130) from None

    results = Results(plan, done, missing)
    (into / "compare.json").write_text(json.dumps(results.to_dict(), indent=1) + "\n")
    draw(results, into / "compare.png")
    (into / "compare.md").write_text(results.markdown("compare.png"))
    click.echo("Regret of a decision on people never seen, by interactions learned from:\n")
    print_table(
        ("", *(f"{size:,}" for size in plan.sizes), "over the rules"),
        (
            (
                name,
                *(results.regret(name, size).text() for size in plan.sizes),
                results.gain(name, plan.sizes[-1]).text(sign=True),
            )
            for name in results.systems
        ),
    )
    click.echo(f"\n{into / 'compare.md'} has the rest.")
