"""What benchmarks/learning.py measured, against its targets: tables and a chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.chart import Line, Panel, draw_panels
from benchmarks.learning_limits import LIMITS
from benchmarks.learning_trials import OURS, OWN, RULES, SYSTEMS, Worth
from benchmarks.report import Table
from recparams_simulation.people.worlds import KINDS

RULES_MARGIN = 0.005
"""Most that regret may be above the rules' after the smallest log."""

OWN_REGRETS = 0.36, 0.22, 0.19
"""Most regret in the usual world after the second, the third and the largest log."""

REWARD_OF_A_VISIT = 3.75
"""Least after the largest log."""

SETTLED = 5
"""Week from which regret must not rise."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Target:
    """A figure to reach: what it is of, what was measured, what is asked, and if that is met."""

    what: str
    measured: str
    asked: str
    met: bool


class Found:
    """Everything measured.

    Args:
        sizes: interactions learned from in all worlds, ascending.
        largest: interactions learned from in the usual world alone.
        worths: of all systems, in any order.
        weekly: regret in the usual world by week of use, the rules' first, (seeds, 1 + weeks).
    """

    def __init__(
        self, sizes: Sequence[int], largest: int, worths: Sequence[Worth], weekly: Floats
    ) -> None:
        self.sizes, self.largest, self.weekly = sizes, largest, weekly
        self._by: dict[tuple[str, int, str], dict[int, Worth]] = {}
        for one in worths:
            self._by.setdefault((one.kind, one.size, one.system), {})[one.seed] = one
        self.kinds = [kind for kind in KINDS if (kind, sizes[0], OURS) in self._by]
        self.systems = [name for name in SYSTEMS if (OWN, sizes[0], name) in self._by]

    def of(self, kind: str, size: int, system: str) -> dict[int, Worth]:
        """Returns what a system is worth, by seed. A limit is the same after logs of any size."""
        return self._by[kind, 0 if system in LIMITS else size, system]

    def regrets(self, kind: str, size: int, system: str) -> Floats:
        """Returns the regrets of all seeds."""
        return np.array([one.regret for one in self.of(kind, size, system).values()])

    def minus(self, kind: str, size: int, system: str, other: str) -> Floats:
        """Returns regrets minus those of another system, seed by seed."""
        one, two = self.of(kind, size, system), self.of(kind, size, other)
        return np.array([one[seed].regret - two[seed].regret for seed in one])

    def visits(self, system: str) -> Floats:
        """Returns the rewards of a visit after the largest log, of all seeds."""
        worths = self.of(OWN, self.largest, system).values()
        return np.array([one.per_visit for one in worths], dtype=np.float64)

    def table(self, kind: str, sizes: Sequence[int], systems: Sequence[str]) -> Table:
        """Returns regret after logs of each size, and regret minus the rules'."""
        columns = [name for size in sizes for name in (f"{size:,}", "− rules")]
        rows = []
        for system in systems:
            figures = []
            for size in sizes:
                figures.append(text(self.regrets(kind, size, system)))
                figures.append(text(self.minus(kind, size, system, RULES), sign=True))
            rows.append((system, *figures))
        return Table(("", *columns), rows)

    def largest_table(self) -> Table:
        """Returns regret and the reward of a visit after the largest log."""
        rows = [
            (name, text(self.regrets(OWN, self.largest, name)), text(self.visits(name)))
            for name in (RULES, OURS)
        ]
        return Table(("", "regret", "reward of a visit"), rows)

    def weekly_table(self) -> Table:
        """Returns regret by week of use, and how many of the seeds had more than in week 5."""
        rows = [
            (
                str(week) if week else "0, the rules",
                text(of_week),
                f"{np.count_nonzero(of_week > self.weekly[:, SETTLED])}" if week > SETTLED else "",
            )
            for week, of_week in enumerate(self.weekly.T)
        ]
        return Table(("weeks", "regret", f"seeds above week {SETTLED}"), rows)

    def targets(self) -> list[Target]:
        """Returns all targets and whether they are met, by means over seeds."""
        smallest, *more = self.sizes
        found = []
        for kind in self.kinds:
            lost = self.minus(kind, smallest, OURS, RULES)
            what = f"{kind}: regret after {smallest:,}, minus the rules'"
            found.append(_at_most(what, lost, RULES_MARGIN, sign=True))
        peers = [name for name in self.systems if name not in (RULES, OURS)]
        for size in more:
            for kind in self.kinds:
                best = min(peers, key=lambda name: self.regrets(kind, size, name).mean())
                what = f"{kind}: regret after {size:,}, minus that of the best peer, {best}"
                found.append(_at_most(what, self.minus(kind, size, OURS, best), 0.0, sign=True))
        for size, most in zip((*more, self.largest), OWN_REGRETS, strict=True):
            regrets = self.regrets(OWN, size, OURS)
            found.append(_at_most(f"{OWN}: regret after {size:,}", regrets, most))
        visits = self.visits(OURS)
        what = f"{OWN}: reward of a visit after {self.largest:,}"
        met = bool(visits.mean() >= REWARD_OF_A_VISIT)
        found.append(Target(what, text(visits), f">= {REWARD_OF_A_VISIT:g}", met))
        by_week = self.weekly.mean(axis=0)
        worst = SETTLED + 1 + int(by_week[SETTLED + 1 :].argmax())
        risen = self.weekly[:, worst] - self.weekly[:, SETTLED]
        what = f"{OWN}: regret in week {worst}, the worst after week {SETTLED}, minus that week's"
        found.append(_at_most(what, risen, 0.0, sign=True))
        return found

    def draw(self, file: Path) -> None:
        """Writes the chart: a panel for each kind of world, and one for the weeks."""
        flat = (RULES, *LIMITS)
        panels = []
        for kind in self.kinds:
            lines = []
            for name in (*self.systems, *LIMITS):
                by_size = [self.regrets(kind, size, name) for size in self.sizes]
                lines.append(_line(name, self.sizes, by_size, flat=name in flat))
            panels.append(Panel(kind, "interactions learned from", lines, logarithmic=True))
        weeks = range(self.weekly.shape[1])
        used = [
            _line(name, weeks, [self.regrets(OWN, self.sizes[-1], name)] * len(weeks), flat=True)
            for name in flat
        ]
        used.append(_line(OURS, weeks, self.weekly.T))
        panels.append(Panel(f"{OWN}, used", "weeks trained", used))
        draw_panels(panels, "regret of a decision", file)


def _at_most(what: str, values: Floats, most: float, *, sign: bool = False) -> Target:
    asked = f"<= {most:{'+' if sign and most else ''}g}"
    return Target(what, text(values, sign=sign), asked, bool(values.mean() <= most))


def _line(label: str, x: Sequence[int], y: Sequence[Floats], *, flat: bool = False) -> Line:
    errors = [0.0 if flat else error(one) for one in y]
    return Line(label, x, [float(one.mean()) for one in y], errors, flat)


def targets_table(targets: Sequence[Target]) -> Table:
    """Returns all targets and whether they are met."""
    return Table(
        ("what", "measured", "target", ""),
        [
            (one.what, one.measured, one.asked, "met" if one.met else "**not met**")
            for one in targets
        ],
    )


def text(values: Floats, *, sign: bool = False) -> str:
    """Returns the mean of one number a seed, ± its standard error where there are more."""
    mean = f"{values.mean():{'+' if sign else ''}.3f}"
    return f"{mean} ± {error(values):.3f}" if len(values) > 1 else mean


def error(values: Floats) -> float:
    """Returns the standard error of the mean; 0 for a single value, which says nothing of it."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
