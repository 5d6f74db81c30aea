"""What a state with little data should borrow: none, kernel, fewer bins, hierarchical shrinkage.

`python -m benchmarks.transfer --into docs/transfer.md` measures and writes it down.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Table
from benchmarks.systems import SETTINGS
from rl.action import ACTION_LEVELS
from rl.learners.q_learning import train
from rl.policy import MIN_EVIDENCE
from rl.reward import RewardWeights
from rl.rules import rule_table
from rl.smoothing import Smoothing, smooth
from rl.state import StateSpace
from simulation.compare.logs import START, Log, contexts, simulate, states, transitions
from simulation.compare.report import Mean
from simulation.people.population import draw_population, draw_visits
from simulation.people.simulator import expected_rewards

WIDTHS = 10.0, 15.0, 20.0, 27.0, 35.0, 50.0
HELD_OUT = 0.25
FIVE, THREE = StateSpace(), StateSpace(bins=3)

Actions = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Learned:
    """A table that Q-learning filled from a log, and the log.

    Attributes:
        q, visits: float32 and int32 (n_states, 27).
        log: what it was learned from.
    """

    space: StateSpace
    q: NDArray[np.float32]
    visits: NDArray[np.int32]
    log: Log


def learn(space: StateSpace, log: Log) -> Learned:
    """Q-learning with the default hyperparameters."""
    q = np.zeros((space.n_states, ACTION_LEVELS.shape[1]), dtype=np.float32)
    visits = np.zeros(q.shape, dtype=np.int32)
    train(q, visits, transitions(log, space), SETTINGS, states_per_cell=space.n_contexts)
    return Learned(space, q, visits, log)


def nothing_borrowed(found: Learned) -> Actions:
    """The best action tried in a state, by its own mean; the rules where none was."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = found.q / -np.expm1(found.visits * np.log1p(-SETTINGS.learning_rate))
    own = np.where(found.visits > 0, mean, -np.inf)
    seen = found.visits.any(axis=1)
    return np.where(seen, own.argmax(axis=1), rule_table(found.space))


def borrowed(found: Learned, *, smoothing: Smoothing, by_level: bool) -> Actions:
    """As a version is published, with or without what actions share."""
    rules = rule_table(found.space)
    smoothed = smooth(
        found.space,
        found.q,
        found.visits,
        rules,
        learning_rate=SETTINGS.learning_rate,
        smoothing=smoothing,
        levels=ACTION_LEVELS if by_level else ACTION_LEVELS[:0],
    )
    known = np.repeat(smoothed.evidence >= MIN_EVIDENCE, found.space.n_contexts)
    return np.where(known, smoothed.advantage.argmax(axis=1), rules)


def width_chosen(found: Learned) -> Actions:
    """The kernel width whose policy, learned without a quarter of the people, suits them best.

    By the self-normalised importance-weighted mean of their logged rewards (Swaminathan &
    Joachims, NeurIPS 2015); with it, all are learned from.
    """
    log = found.log
    held = log.at.person % round(1 / HELD_OUT) == 0
    part = learn(found.space, log[~held])
    here = states(log.traits[held], log.context[held], found.space)

    def estimate(width: float) -> float:
        actions = borrowed(part, smoothing=Smoothing(kernel_width=width), by_level=True)
        weight = (actions[here] == log.action[held]) / log.propensity[held]
        return float(weight @ log.reward[held] / max(weight.sum(), 1e-9))

    best = max(WIDTHS, key=estimate)
    return borrowed(found, smoothing=Smoothing(kernel_width=best), by_level=True)


VARIANTS: dict[str, tuple[StateSpace, Callable[[Learned], Actions]]] = {
    "the rules": (FIVE, lambda found: rule_table(found.space)),
    "nothing borrowed, 5 bins": (FIVE, nothing_borrowed),
    "nothing borrowed, 3 bins": (THREE, nothing_borrowed),
    "similar people and contexts, 5 bins": (
        FIVE,
        partial(borrowed, smoothing=Smoothing(rule_bonus=0.1), by_level=False),
    ),
    "the same, 3 bins": (
        THREE,
        partial(borrowed, smoothing=Smoothing(rule_bonus=0.1), by_level=False),
    ),
    "the same, 5 bins, a bonus of 0.6 for the rules": (
        FIVE,
        partial(borrowed, smoothing=Smoothing(), by_level=False),
    ),
    "that and levels of actions (the default)": (
        FIVE,
        partial(borrowed, smoothing=Smoothing(), by_level=True),
    ),
    "the default, 3 bins": (THREE, partial(borrowed, smoothing=Smoothing(), by_level=True)),
    "the default, width by held-out reward": (FIVE, width_chosen),
}


def values(n: int, seed: int, newcomers: int) -> Iterator[tuple[str, float]]:
    """The mean expected reward of each variant on people who are not in its log of n."""
    rng = np.random.default_rng(seed)
    log = simulate(rng, draw_population(rng, max(50, n // 8)), n)
    new = draw_population(rng, newcomers)
    at = draw_visits(rng, new, np.arange(newcomers), START)
    mean = expected_rewards(new, at, RewardWeights())
    context = contexts(at)
    learned = {space: learn(space, log) for space in (FIVE, THREE)}
    for name, (space, act) in VARIANTS.items():
        chosen = act(learned[space])[states(new.traits[at.person], context, space)]
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
- *Similar people and contexts*: rl/smoothing.py without what actions share; 20 points of kernel
  width, and 0.1 of reward for the rules' action.
- *Levels of actions*: at each level, an action is first what its energy, its diversity and its
  novelty are ([learning](learning.md)).
- *Width by held-out reward*: of {widths} points, the one that does best, by importance weights, on
  a quarter of the people that is left out.

The default is the row that says so: from 10,000 interactions on it does best, and better than the
rules. A width chosen from the log, or fewer bins, are worse. With 1,000 nothing is surely better
than the rules, and a gate holds such a version back.

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
    text = TEXT.format(
        states=FIVE.n_states,
        seeds=seeds,
        table=table.markdown(),
        widths=", ".join(f"{width:g}" for width in WIDTHS),
    )
    into.write_text(text)


if __name__ == "__main__":
    main()
