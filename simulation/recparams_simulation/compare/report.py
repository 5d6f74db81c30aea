"""A comparison as Markdown and as JSON."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import stats

from recparams_simulation.compare.logs import BEHAVIOUR_EPSILON
from recparams_simulation.compare.markdown import table
from recparams_simulation.compare.measure import ESTIMATOR, Plan, Trial

CONFIDENCE = 0.95
BASELINE = "rules"
"""System over which gains are measured."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half of its 95 % interval by Student's t; NaN for a single seed."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Returns the mean and interval of one number a seed."""
        value, n = float(np.mean(values)), len(values)
        if n < 2:
            return cls(value, float("nan"))
        error = float(np.std(values, ddof=1)) / n**0.5
        return cls(value, float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, n - 1)) * error)

    def text(self, sign: bool = False) -> str:
        """Returns the mean as 0.123 ± 0.004, with a plus sign if `sign`."""
        value = f"{self.value:{'+' if sign else ''}.3f}"
        return value if np.isnan(self.half) else f"{value} ± {self.half:.3f}"


class Results:
    """All trials of a comparison.

    Args:
        plan: size of the comparison.
        trials: in any order.
        missing: systems that were left out, and the module that each needs.
    """

    def __init__(self, plan: Plan, trials: Sequence[Trial], missing: dict[str, str]) -> None:
        self.plan = plan
        self.trials = list(trials)
        self.missing = missing
        self._by = {(one.system, one.size, one.seed): one for one in trials}
        names = dict.fromkeys(one.system for one in trials)
        self.systems = sorted(names, key=lambda name: self.regret(name, plan.sizes[-1]).value)
        """Their names, from the least regret after the largest log."""

    def of(self, system: str, size: int) -> list[Trial]:
        """Returns the trials of a system after one size, by seed."""
        return [self._by[system, size, seed] for seed in range(self.plan.seeds)]

    def regret(self, system: str, size: int) -> Mean:
        """Returns the mean regret of a decision."""
        return Mean.of([one.regret for one in self.of(system, size)])

    def gain(self, system: str, size: int) -> Mean:
        """Returns the mean gain in value over the rules, seed by seed."""
        pairs = zip(self.of(system, size), self.of(BASELINE, size), strict=True)
        return Mean.of([one.value - rules.value for one, rules in pairs])

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan, the missing systems and every trial as plain JSON types."""
        return {
            "plan": asdict(self.plan),
            "missing": self.missing,
            "machine": machine(),
            "trials": [asdict(one) for one in self.trials],
        }

    def markdown(self, chart: str) -> str:
        """Returns a page in Markdown.

        Args:
            chart: the file of the chart, relative to the page.
        """
        plan, last = self.plan, self.plan.sizes[-1]
        by_size = tuple(f"{size:,}" for size in plan.sizes)
        seeds = f"{plan.seeds} populations" if plan.seeds > 1 else "one population"
        intervals = (
            "± is half of a 95 % interval by Student's t over them"
            if plan.seeds > 1
            else "one says nothing of chance: use --seeds"
        )
        parts = [
            "# Algorithms compared",
            f"Written by `recparams compare` on {machine()}. Means over {seeds}; {intervals}.",
            f"Everything learns the same logs: the first {_listed(by_size)} interactions of "
            f"simulated people (world: {plan.world}), decided by the rules with epsilon "
            f"{BEHAVIOUR_EPSILON}. It is judged on {plan.held_out:,} interactions of people who "
            "are in none of them, by the exact mean reward of what it would decide there, without "
            "exploration added. All are at their defaults.",
            f"![Regret of a decision after logs of each size]({chart})",
            "## Regret",
            "What the best decision would have been worth more, in units of reward, after learning "
            "from so many interactions. Less is better.",
            self._by_size(self.regret, by_size),
            "## Gain over the rules",
            "The difference in value, population by population: surer than the intervals above.",
            self._by_size(self.gain, by_size, sign=True),
            f"## After {last:,} interactions",
            table(
                (
                    "",
                    "reward of a visit",
                    "estimate − truth",
                    "intervals that hold it",
                    "learning, s",
                    "decision, µs",
                    "size, kB",
                ),
                [self._row(name, last) for name in self.systems],
            ),
            "- *Reward of a visit*: the sum of expected rewards over a visit, whose length and "
            "moods follow from the decisions: what comes later counts here.\n"
            f"- *Estimate − truth*: the value by the service's own estimator ({ESTIMATOR.name}, "
            "from the logged rewards and propensities of the people judged by) less the exact "
            "one; and how many of its 95 % intervals, one a population, hold the exact one.\n"
            "- *Learning*: from input in each one's own form, on one thread where that can be "
            "said, to what is served.\n"
            "- *Decision*: from five scores and a context, in process, one at a time, median.\n"
            "- *Size*: what is stored to serve it, ours compressed as in the database.",
            *(
                f"Left out: {name}, since {module} is not installed."
                for name, module in self.missing.items()
            ),
        ]
        return "\n\n".join(parts) + "\n"

    def _by_size(
        self, what: Callable[[str, int], Mean], columns: tuple[str, ...], sign: bool = False
    ) -> str:
        rows = [
            (name, *(what(name, size).text(sign) for size in self.plan.sizes))
            for name in self.systems
        ]
        return table(("", *columns), rows)

    def _row(self, name: str, size: int) -> tuple[str, ...]:
        here = self.of(name, size)
        errors = [one.estimated - one.value for one in here if one.estimated is not None]
        held = [one.interval[0] <= one.value <= one.interval[1] for one in here if one.interval]
        return (
            name,
            Mean.of([one.per_visit for one in here]).text(),
            Mean.of(errors).text(sign=True) if errors else "refused",
            f"{sum(held)} of {len(held)}",
            f"{np.median([one.learning_seconds for one in here]):.2f}",
            f"{1e6 * np.median([one.decision_seconds for one in here]):.1f}",
            f"{np.median([one.size_bytes for one in here]) / 1000:,.0f}",
        )


def _listed(words: Sequence[str]) -> str:
    """Returns words joined as in 1, 2 and 3."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def machine() -> str:
    """Returns processors and versions, in a phrase."""
    names = "numpy", "numba", "torch", "mabwiser", "vowpalwabbit"
    versions = ", ".join(f"{name} {version(name)}" for name in names if find_spec(name))
    python = platform.python_version()
    return f"{os.cpu_count()} processors, Python {python}, {versions}"
