"""Tuning by one's own log: how far the choice is from the truly best configuration of its grid."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.jobs import FIRST_SEED, Jobs, run_jobs
from benchmarks.measure import Effort
from benchmarks.report import Goal, Section, Table
from recparams_rl.evaluation.grid import Configuration, grid
from recparams_rl.evaluation.tuning import Later, Outcome, explored, policies, tune
from recparams_rl.exploration import OFF, POSTERIOR, Exploration
from recparams_rl.learners.registry import settings_of
from recparams_rl.policy import Policy
from recparams_rl.reward import RewardWeights
from recparams_rl.smoothing import Smoothing
from recparams_simulation.compare.logs import (
    BEHAVIOUR_EPSILON,
    SPACE,
    Log,
    simulate,
    states,
    transitions,
)
from recparams_simulation.compare.measure import INTERACTIONS_PER_PERSON, Plan, draw_held_out
from recparams_simulation.people.population import draw_population
from recparams_simulation.people.simulator import expected_rewards

NEAR = 0.02
"""Units of reward that a choice may lie below the best configuration."""
PRESENT = "q_learning", "lin_ts", "ucb"
"""Algorithms that are in force, each at its defaults, when the choice is made."""
EXPLORATIONS = {
    "off": OFF,
    "posterior": POSTERIOR,
    "schedule": Exploration(BEHAVIOUR_EPSILON),
    "0.05": Exploration(0.05),
}


@dataclass(frozen=True)
class Scope:
    """How much is measured: populations, interactions of a log and held out, and serving bins."""

    seeds: int
    interactions: int
    held_out: int
    presents: tuple[str, ...]
    serving_bins: int = Smoothing.serving_bins
    most_bins: int = 10


FULL = Scope(10, 30_000, 20_000, PRESENT)
QUICK = Scope(1, 400, 200, PRESENT[1:2], serving_bins=3, most_bins=3)


@dataclass(frozen=True)
class Choice:
    """A choice on the log of one population, beside the truth.

    Attributes:
        present: algorithm in force.
        outcome: of the tuning.
        shortfall: true value of the best configuration minus that of the choice, learned from the
            whole log and served to people who are not in it.
        kept: the same of the present configuration.
        looks_best: the same of the one with the highest estimate.
        false: configurations called better or worse than the present one that are not.
        covered: True if all intervals hold the truth, of policies learned from the earlier part and
            served to the people of the later part.
        seconds: that it took.
    """

    present: str
    outcome: Outcome
    shortfall: float
    kept: float
    looks_best: float
    false: int
    covered: bool
    seconds: float


def run(effort: Effort, folder: Path) -> Section:
    """Chooses on the logs of several populations, from several present configurations."""
    scope = QUICK if effort.quick else FULL
    seeds = range(FIRST_SEED, FIRST_SEED + scope.seeds)
    jobs: Jobs = {("choosing", f"seed {seed}"): partial(choose, scope, seed) for seed in seeds}
    done, _ = run_jobs("tuning", jobs)
    found: list[Choice] = [choice for job in jobs for choice in done[job]]
    first = [one for one in found if one.present == scope.presents[0]]
    near = np.mean([one.shortfall <= NEAR for one in first])
    return Section(
        "Tuning",
        [
            f"`recparams_rl/evaluation/tuning.py` on logs of {scope.interactions:,} interactions "
            f"of {scope.seeds} populations (seeds from {FIRST_SEED}), decided by the rules with "
            f"epsilon {BEHAVIOUR_EPSILON}; the first half is learned, the other valued. *Below the "
            "best*: exact mean reward of the truly best configuration of the grid minus that of "
            f"the choice, both learned from the whole log, on {scope.held_out:,} interactions of "
            "others; in brackets what keeping the present settings, and what taking the highest "
            "estimate would have lost. *Wrong*: verdicts better or worse that are not so, of all "
            "populations. *Intervals hold*: populations in which all of them do, at 95 %.",
            _table(found, scope.presents),
        ],
        goals=[
            Goal(
                f"Tuning: populations whose choice is within {NEAR} of the best of the grid",
                "populations",
                float(near),
                0.9,
            )
        ],
    )


def _table(found: Sequence[Choice], presents: Sequence[str]) -> Table:
    rows = []
    for present in presents:
        of = [one for one in found if one.present == present]

        def mean(name: str, among: Sequence[Choice] = of) -> str:
            return f"{np.mean([getattr(one, name) for one in among]):.3f}"

        rows.append(
            [
                present,
                f"{sum(one.shortfall <= NEAR for one in of)} of {len(of)}",
                f"{mean('shortfall')} ({mean('kept')}, {mean('looks_best')})",
                str(sum(one.outcome == "better" for one in of)),
                str(sum(one.outcome == "undecided" for one in of)),
                str(sum(one.false for one in of)),
                f"{sum(one.covered for one in of)} of {len(of)}",
                f"{np.mean([one.seconds for one in of]):.0f}",
            ]
        )
    return Table(
        (
            "present",
            f"within {NEAR}",
            "below the best (present, highest estimate)",
            "shown better",
            "cannot tell",
            "wrong",
            "intervals hold",
            "seconds",
        ),
        rows,
    )


def choose(scope: Scope, seed: int) -> list[Choice]:
    """Returns the choice on the log of one population, from each present configuration."""
    rng = np.random.default_rng(seed)
    n = scope.interactions
    population = draw_population(rng, max(100, n // INTERACTIONS_PER_PERSON))
    log = simulate(rng, population, n)
    held_out = draw_held_out(rng, Plan((n,), 1, scope.held_out, 1))
    earlier, later = log[: n // 2], log[n // 2 :]
    mean = expected_rewards(population, later.at, RewardWeights())
    learned, whole = transitions(earlier), transitions(log)
    worth: dict[Configuration, float] = {}
    found = []
    for algorithm in scope.presents:
        tried = _grid(scope, algorithm)
        truth: dict[Configuration, float] = {}

        def keep(
            one: Configuration, policy: Policy, truth: dict[Configuration, float] = truth
        ) -> None:
            truth[one] = _value(policy, one, later, mean)

        began = time.perf_counter()
        tuning = tune(SPACE, learned, _later(later), tried, on_policy=keep)
        seconds = time.perf_counter() - began
        new = [one for one in tried if one not in worth]
        for one, policy in policies(SPACE, whole, new):
            worth[one] = _value(policy, one, held_out.log, held_out.mean)
        best = max(worth[one] for one in tried)
        told = [row for row in tuning.rows[1:] if not isnan(row.difference)]
        true = {row: truth[row.configuration] - truth[tried[0]] for row in told}
        looks = max(
            (row for row in tuning.rows if not isnan(row.difference)),
            key=lambda row: row.difference,
            default=tuning.rows[0],
        )
        found.append(
            Choice(
                present=algorithm,
                outcome=tuning.outcome,
                shortfall=best - worth[tried[tuning.chosen]],
                kept=best - worth[tried[0]],
                looks_best=best - worth[looks.configuration],
                false=sum(
                    (row.verdict == "better" and true[row] <= 0)
                    or (row.verdict == "worse" and true[row] >= 0)
                    for row in told
                ),
                covered=all(row.low - 1e-9 <= true[row] <= row.high + 1e-9 for row in told),
                seconds=seconds,
            )
        )
    return found


def _grid(scope: Scope, algorithm: str) -> list[Configuration]:
    present = Configuration(
        algorithm, settings_of(algorithm, {}), Smoothing(serving_bins=scope.serving_bins)
    )
    whole = grid(present, EXPLORATIONS, deep=False)
    return [one for one in whole if one.smoothing.serving_bins <= scope.most_bins]


def _later(log: Log) -> Later:
    return Later(
        traits=log.traits.astype(np.float32),
        context=log.context.astype(np.int32),
        action=log.action.astype(np.uint8),
        reward=log.reward,
        pscore=log.propensity.astype(np.float32),
        person=log.at.person,
    )


def _value(
    policy: Policy, configuration: Configuration, log: Log, mean: NDArray[np.float64]
) -> float:
    """Returns the exact mean reward of a policy as it is served in the situations of a log."""
    state = states(log.traits, log.context, policy.space)
    dist = explored(policy, configuration.explores, state, log.traits)
    return float((dist * mean).sum(axis=1).mean())
