"""What exploration costs, and what its logs can tell: ten weeks of use in five kinds of worlds."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.chart import Line, Panel, draw_panels
from benchmarks.exploration_trials import (
    HOLDBACK,
    KINDS,
    OFF,
    POSTERIOR,
    Explored,
    explore_for_weeks,
)
from benchmarks.jobs import FIRST_SEED, Jobs, run_jobs
from benchmarks.measure import Effort
from benchmarks.report import Section, Table, docs_chart
from recparams_simulation.compare.measure import Plan
from recparams_simulation.people.worlds import KINDS as WORLDS

CHART = "exploration.png"
SETTLED = 5
"""Week from which versions change little."""


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    worlds: tuple[str, ...]
    kinds: tuple[str, ...]
    seeds: int
    weeks: int
    people: int
    held_out: int


FULL = Scope(tuple(WORLDS), KINDS, seeds=5, weeks=10, people=1_500, held_out=10_000)
QUICK = Scope(("own",), (POSTERIOR,), seeds=1, weeks=3, people=30, held_out=200)


def run(effort: Effort, folder: Path) -> Section:
    """All of it; draws `CHART` in docs, or in the folder where that is another than usual."""
    scope = QUICK if effort.quick else FULL
    began = time.monotonic()
    found = measure(scope)
    minutes = (time.monotonic() - began) / 60
    chart = docs_chart(CHART, folder)
    found.draw(chart)
    return Section(
        "Exploration",
        [
            f"{scope.people:,} people, newcomers in the places of those who leave; every week is "
            "decided by the version of the week before, which serves all at once but "
            f"{100 * HOLDBACK:.0f} % who are held back, and learned on top. "
            "Policies are published on the bins of learning. Means over seeds "
            f"{FIRST_SEED} to {FIRST_SEED + scope.seeds - 1}, ± the standard error of the mean.",
            f"### Regret of a decision as it was served, {scope.weeks} weeks",
            "Exploration and holdback included, in units of reward.",
            found.by_world(lambda one: float(one.regret.mean())),
            "### The same in the last week",
            found.by_world(lambda one: float(one.regret[-1])),
            "### Regret of what was learned, without exploration",
            "On people never seen, after the last week.",
            found.by_world(lambda one: float(one.learned[-1])),
            f"### What one week's log says of the served version and the one before, from week "
            f"{SETTLED} on",
            "The standard error of the difference of their values by the doubly robust estimator, "
            "the effective number of people who were given what only one of the two would do, and "
            "how often the service would refuse to give a figure: medians over worlds, weeks and "
            "seeds.",
            found.telling(),
            f"{minutes:.0f} minutes on {len(os.sched_getaffinity(0))} cores.",
        ],
        charts={"Regret by week of use": os.path.relpath(chart, folder)},
    )


def measure(scope: Scope) -> "Found":
    """Returns all that is found. Tells stderr of each job done."""
    jobs: Jobs = {
        (kind, f"{world}, seed {seed}"): partial(
            explore_for_weeks,
            Plan((1_000,), 1, scope.held_out, 1, world),
            seed,
            kind,
            scope.weeks,
            scope.people,
        )
        for seed in range(FIRST_SEED, FIRST_SEED + scope.seeds)
        for world in scope.worlds
        for kind in scope.kinds
    }
    done, _ = run_jobs("exploration", jobs)
    return Found(scope.worlds, scope.kinds, list(done.values()))


class Found:
    """Everything measured.

    Args:
        worlds, kinds: of world and of exploration.
        runs: of all of them and all seeds, in any order.
    """

    def __init__(
        self, worlds: Sequence[str], kinds: Sequence[str], runs: Sequence[Explored]
    ) -> None:
        self.worlds, self.kinds, self.runs = worlds, kinds, runs

    def of(self, world: str, kind: str) -> list[Explored]:
        """Returns the runs in a kind of world under one kind of exploration."""
        return [one for one in self.runs if (one.world, one.kind) == (world, kind)]

    def by_world(self, value: Callable[[Explored], float]) -> Table:
        """Returns a table of a value, one row a kind of exploration."""
        rows = []
        for kind in self.kinds:
            cells = []
            for world in self.worlds:
                values = np.array([value(one) for one in self.of(world, kind)])
                error = values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5
                cells.append(f"{values.mean():.3f} ± {error:.3f}")
            rows.append([kind, *cells])
        return Table(["", *self.worlds], rows)

    def telling(self) -> Table:
        """Returns a table of what logs say of two versions, one row a kind of exploration."""
        rows = []
        for kind in self.kinds:
            told = [
                one
                for run in self.runs
                if run.kind == kind
                for one in run.told[max(0, min(SETTLED - 3, len(run.told) - 1)) :]
            ]
            rows.append(
                [
                    kind,
                    f"{np.median([one.error for one in told]):.4f}",
                    f"{np.median([one.people for one in told]):.0f}",
                    f"{100 * np.mean([one.refused for one in told]):.0f} %",
                    f"{np.mean([abs(one.off_by) for one in told]):.3f}",
                ]
            )
        columns = "", "standard error", "effective people", "refused", "mean error"
        return Table(columns, rows)

    def draw(self, file: Path) -> None:
        """Draws the regret by week in each kind of world."""
        panels = [
            Panel(world, "week", [self._line(world, kind) for kind in self.kinds])
            for world in self.worlds
        ]
        draw_panels(panels, "regret of a decision as it was served", file)

    def _line(self, world: str, kind: str) -> Line:
        weekly: NDArray[np.float64] = np.array([one.regret for one in self.of(world, kind)])
        error = weekly.std(axis=0, ddof=min(1, len(weekly) - 1)) / len(weekly) ** 0.5
        weeks = list(range(1, weekly.shape[1] + 1))
        return Line(kind, weeks, weekly.mean(axis=0).tolist(), error.tolist(), flat=kind == OFF)
