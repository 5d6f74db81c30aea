"""Parts of benchmarks/learning.py, each of one world and one seed: trials, and weeks of use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.learning_limits import BY_CELL, BY_PROFILE, best_by_cell, best_by_profile
from recparams_rl.smoothing import Smoothing
from recparams_simulation.compare.logs import START, play
from recparams_simulation.compare.measure import Plan, draw_held_out, draw_logs
from recparams_simulation.compare.peers import MABWiser, VowpalWabbit
from recparams_simulation.compare.systems import Contestant, LearnerSystem, RulesSystem, one_hot
from recparams_simulation.people.population import WEEK, draw_population, draw_visits

OWN = "own"
RULES, OURS = "rules", "q_learning"
SYSTEMS: dict[str, Callable[[Smoothing], Contestant]] = {
    RULES: lambda _: RulesSystem(),
    OURS: partial(LearnerSystem, OURS),
    "lin_ucb": partial(LearnerSystem, "lin_ucb"),
    "lin_ts": partial(LearnerSystem, "lin_ts"),
    "dqn": partial(LearnerSystem, "dqn"),
    "MABWiser LinUCB": lambda _: MABWiser("LinUCB", alpha=1.0),
    "Vowpal Wabbit": lambda _: VowpalWabbit(epsilon=0.0),
}
"""What makes each system; the smoothing is that of our learners."""
DEFAULT = Smoothing()


@dataclass(frozen=True)
class Worth:
    """Worth of a system in a world after a log.

    Attributes:
        kind: of the world.
        size: interactions it learned from; 0 for a limit, which learns nothing.
        system: a name in `SYSTEMS`, or a limit.
        seed: of the world and of the people.
        regret: mean regret of a decision on people it has never seen.
        per_visit: mean reward of a visit of theirs; None if it was not asked for.
    """

    kind: str
    size: int
    system: str
    seed: int
    regret: float
    per_visit: float | None = None


def learn_logs(
    plan: Plan,
    seed: int,
    systems: Sequence[str],
    *,
    visits: bool = False,
    smoothing: Smoothing = DEFAULT,
) -> list[Worth]:
    """Returns the worth of systems after logs of each size.

    Args:
        plan: size of the logs, and the kind of world.
        seed: of the world and of the people.
        systems: names in `SYSTEMS`, of what is installed.
        visits: if whole visits are to be evaluated too.
        smoothing: of our learners.
    """
    log, held_out = draw_logs(plan, seed)
    found = []
    for size in plan.sizes:
        for name in systems:
            system = SYSTEMS[name](smoothing)
            system.prepare(log[:size])
            system.reset()
            system.learn()
            dist = system.action_dist(held_out.log.traits, held_out.log.context)
            per_visit = held_out.per_visit(system, np.random.default_rng(seed)) if visits else None
            regret = held_out.best - held_out.value(dist)
            found.append(Worth(plan.world, size, name, seed, regret, per_visit))
    return found


def find_limits(plan: Plan, seed: int) -> list[Worth]:
    """Returns what the best policies reach on the people whom `learn_logs` judges by."""
    _, held_out = draw_logs(plan, seed)
    best = {
        BY_CELL: best_by_cell(np.random.default_rng([seed, 1]), held_out),
        BY_PROFILE: best_by_profile(held_out),
    }
    return [
        Worth(plan.world, 0, name, seed, held_out.best - held_out.value(one_hot(actions)))
        for name, actions in best.items()
    ]


def use_for_weeks(
    plan: Plan, seed: int, weeks: int, people: int, smoothing: Smoothing = DEFAULT
) -> list[float]:
    """Returns the regret on people never seen, of the rules and after each of some weeks.

    Every week is decided by the version of the week before, explores at the learner's rate and is
    learned by q_learning on top; the new version serves the next, whatever it is worth. Newcomers
    take the places of those who leave.
    """
    rng = np.random.default_rng([seed, 2])
    population, held_out = draw_population(rng, people), draw_held_out(rng, plan)
    system = LearnerSystem(OURS, smoothing)
    system.reset()
    system.policy = RulesSystem().policy
    regrets = []
    for week in range(weeks + 1):
        dist = system.action_dist(held_out.log.traits, held_out.log.context)
        regrets.append(held_out.best - held_out.value(dist))
        if week < weeks:
            visits = draw_visits(rng, population, np.arange(people), START + week * WEEK)
            log, leavers = play(rng, population, visits, system.policy, system.learner.epsilon)
            population = population.replaced(leavers, draw_population(rng, len(leavers)))
            system.prepare(log)
            system.learn()
    return regrets
