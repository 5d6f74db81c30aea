"""Weeks of use of one world under one kind of exploration, for benchmarks/exploration.py."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.delivery_gates import new_learner
from benchmarks.delivery_record import HOLDBACK_PERCENT
from recparams_rl import exploration
from recparams_rl.evaluation.estimators import DoublyRobust, rounds
from recparams_rl.evaluation.intervals import difference
from recparams_rl.evaluation.people import effective_size, standard_error
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.numerics import unique_inverse
from recparams_rl.policy import GreedyTable, Policy, draw, rule_based_policy
from recparams_rl.reward import RewardWeights
from recparams_simulation.compare.logs import (
    SPACE,
    START,
    Log,
    contexts,
    likeliest,
    play_by,
    states,
    transitions,
)
from recparams_simulation.compare.measure import HeldOut, Plan, draw_held_out
from recparams_simulation.compare.systems import one_hot
from recparams_simulation.people.population import (
    WEEK,
    Population,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.simulator import expected_rewards
from recparams_simulation.people.worlds import draw_world

OFF, POSTERIOR = "off", "posterior"
EXPLORATIONS = {
    OFF: exploration.OFF,
    "schedule": exploration.SCHEDULE,
    "0.05": exploration.Exploration(0.05),
    POSTERIOR: exploration.POSTERIOR,
}
KINDS = tuple(EXPLORATIONS)
OWN_BINS = 0
"""Policies are published on the bins of learning, which is done sooner."""

HOLDBACK = HOLDBACK_PERCENT / 100
"""Share of the people that has the rules, as by default."""


@dataclass(frozen=True)
class Told:
    """What a log says of the value of one version less that of another.

    Attributes:
        error: standard error of the estimate.
        off_by: the estimate less the exact difference on people never seen.
        people: effective people who were given what only one of the two would do, the fewer.
        refused: True if the service would give no estimate.
    """

    error: float
    off_by: float
    people: float
    refused: bool


@dataclass(frozen=True)
class Explored:
    """What weeks of use under one kind of exploration were worth.

    Attributes:
        world, kind, seed: of the world, of the exploration, of the people.
        regret: mean regret of a decision as it was served, by week, (weeks,).
        learned: mean regret of the greedy decision on people never seen, after each week, (weeks,).
        rules: that of the rules.
        told: what the log of each week from the third on says of the version that was served, less
            the one before.
    """

    world: str
    kind: str
    seed: int
    regret: NDArray[np.float64]
    learned: NDArray[np.float64]
    rules: float
    told: tuple[Told, ...]


@dataclass(frozen=True)
class Exploring:
    """What is served, and how it explores.

    Args:
        version: its number; 0 is the rules.
        policy: the version.
        rules: the rules, served to those who are held back.
        kind: of exploration, one of `KINDS`.
        scheduled: epsilon by the schedule.
    """

    version: int
    policy: GreedyTable
    rules: GreedyTable
    kind: str
    scheduled: float

    def dists(
        self, traits: NDArray[np.float64], context: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Returns probabilities of all actions, the version's and the rules', both (n, 27).

        Args:
            traits: scores, 0 to 100, (n, 5).
            context: context indices, (n,).
        """
        state = states(traits, context, self.policy.space)
        explores = EXPLORATIONS[self.kind].beside(self.version)
        epsilon = self.scheduled if explores.epsilon is None else explores.epsilon
        draws = self.policy.draws if explores.by_draws else None
        own, rules = (
            replace(one, epsilon=epsilon, draws=of_one).exploring_dist(state)
            for one, of_one in ((self.policy, draws), (self.rules, None))
        )
        return own, rules


def explore_for_weeks(plan: Plan, seed: int, kind: str, weeks: int, people: int) -> Explored:
    """Returns what weeks of use are worth where every version serves all at once.

    Each week is decided by the version of the week before, with exploration, and learned on top.
    Newcomers take the places of those who leave. Equal seeds give equal people.
    """
    rng, world = np.random.default_rng([seed, 7]), draw_world(plan.world, seed)
    population, held_out = draw_population(rng, people, world), draw_held_out(rng, plan, world)
    held_back = rng.random(people) < HOLDBACK
    learner = new_learner(OWN_BINS)
    policy = rules = rule_based_policy(SPACE, 0.0)
    regret, learned, told, before = [], list[float](), [], rules
    for week in range(weeks):
        exploring = Exploring(week, policy, rules, kind, learner.epsilon)
        log, leavers, cost = _play(rng, population, exploring, held_back, week)
        population = population.replaced(leavers, draw_population(rng, len(leavers), world))
        regret.append(cost)
        if week >= 2:
            told.append(_told_apart(log, policy, before, learned[-2] - learned[-1]))
        learner.learn(transitions(log))
        before, policy = policy, _table(learner.publish())
        learned.append(_regret(held_out, policy))
    return Explored(
        world=plan.world,
        kind=kind,
        seed=seed,
        regret=np.array(regret),
        learned=np.array(learned),
        rules=_regret(held_out, rules),
        told=tuple(told),
    )


def _table(policy: Policy) -> GreedyTable:
    assert isinstance(policy, GreedyTable)
    return policy


def _play(
    rng: np.random.Generator,
    population: Population,
    served: Exploring,
    held_back: NDArray[np.bool_],
    week: int,
) -> tuple[Log, NDArray[np.int64], float]:
    """Plays a week; returns its log, who leaves, and the mean regret of a decision in it.

    People who are held back, bool (n_people,), have the rules. Propensities are over both.
    """

    def choose(at: Situations) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        own, rules = served.dists(population.traits[at.person], contexts(at))
        action = draw(rng, np.where(held_back[at.person][:, None], rules, own))
        both = HOLDBACK * rules + (1.0 - HOLDBACK) * own
        return action, both[np.arange(len(at)), action]

    visits = draw_visits(rng, population, np.arange(len(population)), START + week * WEEK)
    log, leavers = play_by(rng, population, visits, choose)
    mean = expected_rewards(population, log.at, RewardWeights())
    own, rules = served.dists(log.traits, log.context)
    dist = np.where(held_back[log.at.person][:, None], rules, own)
    return log, leavers, float((mean.max(axis=1) - (dist * mean).sum(axis=1)).mean())


def _regret(held_out: HeldOut, policy: GreedyTable) -> float:
    """Returns the mean regret of the greedy decisions for people never seen."""
    actions = likeliest(policy, held_out.log.traits, held_out.log.context)
    return held_out.best - held_out.value(one_hot(actions))


def _told_apart(log: Log, policy: GreedyTable, other: GreedyTable, truth: float) -> Told:
    """Returns what a log says of a policy less another, that being the truth."""
    state = states(log.traits, log.context, policy.space)
    modelled = estimate_rewards(
        policy.space, state, log.action.astype(np.uint8), log.reward, log.at.person
    )
    seen = [
        rounds(
            log.reward,
            log.action,
            log.propensity,
            one_hot(one.greedy[state]),
            modelled,
            cluster=log.at.person,
        )
        for one in (policy, other)
    ]
    person = unique_inverse(log.at.person)[1]
    (value, terms), (baseline, others) = (DoublyRobust().influence(one) for one in seen)
    surplus = seen[0].weight - seen[1].weight
    people = min(
        effective_size(np.bincount(person, np.maximum(sign * surplus, 0.0))) for sign in (1, -1)
    )
    return Told(
        standard_error(terms - others, person),
        value - baseline - truth,
        people,
        bool(difference(DoublyRobust(), *seen).reason),
    )
