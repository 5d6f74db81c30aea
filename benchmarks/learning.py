"""What is learned in five kinds of worlds: regret by size of the log, limits, and weeks of use."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.jobs import FIRST_SEED, Jobs, run_jobs
from benchmarks.learning_delivery import Use, deliver
from benchmarks.learning_delivery_report import Delivered
from benchmarks.learning_harm import KINDS as HARMS
from benchmarks.learning_harm import WEEKS_OF_STEP, deliver_with_harm
from benchmarks.learning_limits import ALIKE, BY_CELL, BY_PROFILE, LIMITS
from benchmarks.learning_report import SETTLED, Found, targets_table
from benchmarks.learning_trials import (
    OURS,
    OWN,
    RULES,
    SYSTEMS,
    find_limits,
    learn_logs,
    use_for_weeks,
)
from benchmarks.measure import Effort
from benchmarks.report import Section, Table, docs_chart
from recparams_rl.evaluation.rollout import DeliveryRules
from recparams_rl.smoothing import Smoothing
from recparams_simulation.compare.logs import BEHAVIOUR_EPSILON
from recparams_simulation.compare.measure import Plan
from recparams_simulation.people.worlds import KINDS

CHART = "learning-worlds.png"


@dataclass(frozen=True)
class Scope:
    """How much is measured.

    Attributes:
        sizes: interactions learned from in all worlds, ascending.
        largest: interactions learned from in the usual world by `OURS` alone.
        seeds: worlds of each kind, with people of their own.
        held_out, visits: as in `Plan`.
        weeks, people: of use.
        kinds: of worlds, the usual one among them.
        smoothing: of our learners.
        use: under the rules of delivery.
        ages, harms: weeks of it after which worse versions are tried, and their kinds.
    """

    sizes: tuple[int, ...]
    largest: int
    seeds: int
    held_out: int
    visits: int
    weeks: int
    people: int
    kinds: tuple[str, ...]
    smoothing: Smoothing
    use: Use
    ages: tuple[int, ...]
    harms: tuple[str, ...]

    def plan(self, kind: str, *sizes: int) -> Plan:
        """Returns the plan of one kind of world."""
        return Plan(sizes or self.sizes, 1, self.held_out, self.visits, kind)


FULL = Scope(
    sizes=(1_000, 10_000, 100_000),
    largest=1_000_000,
    seeds=5,
    held_out=20_000,
    visits=2_000,
    weeks=26,
    people=1_500,
    kinds=tuple(KINDS),
    smoothing=Smoothing(),
    use=Use(people=1_500, weeks=26, looks=28, bins=0),
    ages=(4, 16),
    harms=HARMS,
)
QUICK = Scope(
    sizes=(100, 200, 300),
    largest=400,
    seeds=1,
    held_out=200,
    visits=20,
    weeks=SETTLED + 1,
    people=50,
    kinds=(OWN, "jumps"),
    smoothing=Smoothing(serving_bins=0),
    use=Use(people=50, weeks=2, looks=2, bins=0),
    ages=(2,),
    harms=HARMS[-1:],
)


def run(effort: Effort, folder: Path) -> Section:
    """All of it; draws `CHART` in docs, or in the folder where that is another than usual."""
    scope = QUICK if effort.quick else FULL
    began = time.monotonic()
    found, delivered, seconds = measure(scope)
    minutes = (time.monotonic() - began) / 60
    chart = docs_chart(CHART, folder)
    found.draw(chart)
    absent = ", ".join(name for name in SYSTEMS if name not in found.systems)
    missing = f" Not installed: {absent}." if absent else ""
    spent = ", ".join(f"{part} {whole:,.0f} s" for part, whole in seconds.items())
    targets = found.targets() + delivered.targets()
    met = sum(one.met for one in targets)
    parts = [
        "What one decision loses, in units of reward, to the best of the 27 actions for that very "
        f"person: means over seeds {FIRST_SEED} to {FIRST_SEED + scope.seeds - 1}, each with a "
        "world and people of its own, ± the standard error of the mean. Logs are of people decided "
        f"by the rules with epsilon {BEHAVIOUR_EPSILON}; it is judged on {scope.held_out:,} "
        "interactions of others, by exact mean rewards, without exploration. All are at their "
        f"defaults.{missing}",
        "### Targets",
        f"{met} of {len(targets)} are met, by the means.",
        targets_table(targets),
    ]
    for kind in scope.kinds:
        parts += [
            f"### World: {kind}",
            found.table(kind, scope.sizes, (*found.systems, *LIMITS)),
        ]
    parts += [
        f"*{BY_CELL}* knows the world and sees five bins a trait and the context, as tables do: "
        f"the mean rewards of {ALIKE} people of the cell. *{BY_PROFILE}* sees exact scores. "
        "Neither knows personal tastes, which is what is left. "
        "`recparams_simulation/people/worlds.py` has the kinds.",
        f"### World: {OWN}, {scope.largest:,} interactions",
        found.largest_table(),
        f"### World: {OWN}, weeks of use",
        f"{scope.people:,} people, newcomers in the places of those who leave. Each week is "
        "decided by the version of the week before, with the learner's exploration; it is learned "
        "on top, and the new version serves the next, whatever it is worth.",
        found.weekly_table(),
        *_delivery(scope.use, delivered),
        f"{minutes:.0f} minutes on {len(os.sched_getaffinity(0))} cores; seconds of processes: "
        f"{spent}.",
    ]
    return Section(
        "Learning",
        parts,
        charts={"Regret by size of the log and by week": os.path.relpath(chart, folder)},
    )


def _delivery(use: Use, delivered: Delivered) -> list[str | Table]:
    return [
        f"### World: {OWN}, weeks of use under the rules of delivery",
        f"{use.people:,} people, {use.looks} looks a week, all rules at their defaults, 5 % held "
        "back, against the same with every version promoted at once. Exact expected reward of an "
        "interaction as it is served, exploration included; policies are published on the bins of "
        "learning.",
        delivered.reward_table(),
        delivered.fates(),
        delivered.weekly_table(),
        f"### World: {OWN}, versions that are worse",
        "Each a candidate for the place of an active version: judged by the gates, and then at its "
        f"first step for {WEEKS_OF_STEP} weeks with no other to take its place. What the gates "
        "refuse is served too, to see what the step would make of it.",
        delivered.harm_table(),
    ]


def measure(scope: Scope) -> tuple[Found, Delivered, dict[str, float]]:
    """Returns all that is found, and the seconds of each part. Tells stderr of each job done."""
    here = [name for name, make in SYSTEMS.items() if make(scope.smoothing).installed]
    seeds = range(FIRST_SEED, FIRST_SEED + scope.seeds)
    # What takes longest comes first, so that no process waits for it at the end.
    using: Jobs = {
        ("weeks", f"seed {seed}"): partial(
            use_for_weeks, scope.plan(OWN), seed, scope.weeks, scope.people, scope.smoothing
        )
        for seed in seeds
    }
    promoting: Jobs = {
        ("promoting", f"seed {seed}"): partial(
            deliver_with_harm, seed, seed - FIRST_SEED, scope.use, scope.ages, scope.harms
        )
        for seed in seeds
    }
    staging: Jobs = {
        ("delivery", f"seed {seed}"): partial(deliver, seed, scope.use, DeliveryRules())
        for seed in seeds
    }
    learning: Jobs = {
        (f"{scope.largest:,}", f"seed {seed}"): partial(
            learn_logs,
            scope.plan(OWN, scope.largest),
            seed,
            (RULES, OURS),
            visits=True,
            smoothing=scope.smoothing,
        )
        for seed in seeds
    }
    for kind in scope.kinds:
        plan = scope.plan(kind)
        for seed in seeds:
            learning[kind, f"seed {seed}"] = partial(
                learn_logs, plan, seed, here, smoothing=scope.smoothing
            )
            learning["limits", f"{kind}, seed {seed}"] = partial(find_limits, plan, seed)
    done, seconds = run_jobs("learning", {**promoting, **staging, **using, **learning})
    worths = [worth for job in learning for worth in done[job]]
    weekly = np.array([done[job] for job in using])
    delivered = Delivered(
        promoted=[done[job][0] for job in promoting],
        staged=[done[job] for job in staging],
        harms=[harm for job in promoting for harm in done[job][1]],
    )
    return Found(scope.sizes, scope.largest, worths, weekly), delivered, seconds
