"""What each part of the smoothing is worth: the regression, caution, finer bins, rewards apart.

`python -m benchmarks.transfer --into docs/transfer.md` measures and writes it down.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.systems import SETTINGS
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.numerics import learned_share
from recparams_rl.policy import GreedyTable, publish
from recparams_rl.reward import RewardWeights
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import Smoothing, Visited
from recparams_rl.state import StateSpace
from recparams_simulation.compare.logs import START, contexts, simulate, states, transitions
from recparams_simulation.compare.report import Mean
from recparams_simulation.people.population import draw_population, draw_visits
from recparams_simulation.people.simulator import expected_rewards

FIVE = StateSpace()
DEFAULT = Smoothing()

Actions = NDArray[np.integer[Any]]


def nothing_borrowed(learner: QLearning) -> Actions:
    """Returns the best action tried in each state, by its own mean; the rules' where none was."""
    share = learned_share(learner.visits, SETTINGS.learning_rate)
    own = np.divide(learner.q, share, out=np.full(share.shape, -np.inf), where=share > 0)
    seen = learner.visits.any(axis=1)
    return np.where(seen, own.argmax(axis=1), rule_table(FIVE))


def published(
    learner: QLearning, *, smoothing: Smoothing = DEFAULT, apart: bool = True
) -> GreedyTable:
    """Returns the policy as published; `apart` keeps immediate rewards apart from what follows."""
    return publish(
        FIVE,
        Visited.of(learner.q, learner.visits, learner.rewards if apart else learner.q),
        learning_rate=SETTINGS.learning_rate,
        epsilon=0.0,
        smoothing=smoothing,
    )


VARIANTS: dict[str, Callable[[QLearning], GreedyTable | Actions]] = {
    "the rules": lambda _: rule_table(FIVE),
    "nothing borrowed": nothing_borrowed,
    "the regression, without caution, on the bins of learning": partial(
        published, smoothing=Smoothing(caution=0.0, serving_bins=0)
    ),
    "the same, with all that follows (a foresight of 1)": partial(
        published, smoothing=Smoothing(caution=0.0, foresight=1.0, serving_bins=0)
    ),
    "the same, on Q as a whole": partial(
        published, smoothing=Smoothing(caution=0.0, serving_bins=0), apart=False
    ),
    "with caution": partial(published, smoothing=Smoothing(serving_bins=0)),
    "with caution, on 7 bins (the default)": published,
    "with twice the caution": partial(published, smoothing=Smoothing(2 * DEFAULT.caution)),
    "a tenth of the shrinkage": partial(
        published, smoothing=Smoothing(shrinkage=DEFAULT.shrinkage / 10)
    ),
}


def values(n: int, seed: int, newcomers: int) -> Iterator[tuple[str, float]]:
    """The mean expected reward of each variant on people who are not in its log of n."""
    rng = np.random.default_rng(seed)
    log = simulate(rng, draw_population(rng, max(50, n // 8)), n)
    new = draw_population(rng, newcomers)
    at = draw_visits(rng, new, np.arange(newcomers), START)
    mean = expected_rewards(new, at, RewardWeights())
    context = contexts(at)
    learner = QLearning(FIVE, SETTINGS)
    learner.learn(transitions(log))
    for name, act in VARIANTS.items():
        found = act(learner)
        space, actions = (
            (found.space, found.greedy) if isinstance(found, GreedyTable) else (FIVE, found)
        )
        chosen = actions[states(new.traits[at.person], context, space)]
        yield name, float(mean[np.arange(len(at)), chosen].mean())
    yield "the best possible", float(mean.max(axis=1).mean())


def measure(sizes: list[int], seeds: int, newcomers: int) -> Table:
    """All variants on logs of all sizes; a column for each size."""
    found: dict[str, dict[int, list[float]]] = {}
    for n in sizes:
        for seed in range(seeds):
            for name, value in values(n, seed, newcomers):
                found.setdefault(name, {}).setdefault(n, []).append(value)
        click.echo(f"{n:,} interactions done", err=True)
    return Table(
        ("", *(f"{n:,}" for n in sizes)),
        [(name, *(Mean.of(by_size[n]).text() for n in sizes)) for name, by_size in found.items()],
    )


TEXT = """# What a state borrows

A personality cell in one context sees few interactions: {states:,} states, 27 actions. What is
served there is mostly what is known of similar people, of other contexts and of similar actions.
How much that is worth, and which way of doing it, is measured here: Q-learning on logs of simulated
people, decided by the rules with epsilon 0.3, and the mean expected reward of what it would then
serve to people who are not in the log. Means over {seeds} populations, with 95 % intervals by
Student's t. The populations of one column are the same for all rows, so differences between rows
are surer than the intervals of each.

{table}

- *Nothing borrowed*: the best action that was tried in the very state, the rules where none was.
- *The regression*: recparams_rl/smoothing.py, which says of every state what its personality,
  context and actions have in common with all others ([learning](learning.md)).
- *All that follows*: Q less the immediate reward, regressed by itself and added; or Q as a whole.
- *Caution*: the rules' action, unless another one is surely better.
- *7 bins*: the regression is looked up for finer cells than those that were learned.

[Learning in five worlds](../benchmarks/RESULTS.md#learning) measures the default against other
systems.

`python -m benchmarks.transfer --into docs/transfer.md` writes this page.
"""


@click.command()
@click.option("--sizes", default="1000,10000,100000", help="Interactions in a log, by commas.")
@click.option("--seeds", default=8, type=click.IntRange(1), help="Populations for each size.")
@click.option("--newcomers", default=2000, type=click.IntRange(1), help="People to judge by.")
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path), help="A Markdown file.")
def main(sizes: str, seeds: int, newcomers: int, into: Path | None) -> None:
    """Measure what borrowing between states is worth. Eight seeds take about three minutes."""
    table = measure([int(size) for size in sizes.split(",")], seeds, newcomers)
    if into is None:
        click.echo(table.markdown())
        return
    text = TEXT.format(states=FIVE.n_states, seeds=seeds, table=table.markdown())
    into.write_text(text)


if __name__ == "__main__":
    main()
