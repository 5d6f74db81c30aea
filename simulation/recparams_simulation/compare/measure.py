"""Trials of each system on each log, evaluated on people who are in none of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.estimators import DoublyRobust, rounds
from recparams_rl.evaluation.intervals import Estimate, estimate
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.policy import draw
from recparams_rl.reward import RewardWeights
from recparams_simulation.compare.logs import SPACE, START, Log, contexts, simulate
from recparams_simulation.compare.systems import Contestant
from recparams_simulation.people.population import (
    Population,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.preferences import OWN, World
from recparams_simulation.people.simulator import expected_rewards, next_situations, react
from recparams_simulation.people.worlds import KINDS, draw_world

ESTIMATOR = DoublyRobust()
"""Estimator of the service's gates."""

INTERACTIONS_PER_PERSON = 8
"""Interactions of each person in a log, about, which is the beginning of a week."""

_IN_OTHER_WORLDS = 6
"""The same where it is not the usual world: in some, visits are shorter."""

_TIMED_QUESTIONS, _TIMED_ROUNDS = 100, 5


@dataclass(frozen=True)
class Plan:
    """Size of a comparison.

    Args:
        sizes: interactions learned from, ascending; the first ones of one log.
        seeds: number of populations and logs.
        held_out: interactions of other people, on which all are evaluated.
        visits: whole visits of those people, on which delayed effects are evaluated.
        world: kind of world, one of `recparams_simulation.people.worlds.KINDS`.

    Raises:
        ValueError: if a number is out of range.
    """

    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    seeds: int = 5
    held_out: int = 20_000
    visits: int = 2_000
    world: str = "own"

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 100 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("sizes must be 100 or more, each larger than the one before")
        if min(self.seeds, self.held_out, self.visits) < 1:
            raise ValueError("seeds, held_out and visits must be 1 or more")
        if self.world not in KINDS:
            raise ValueError(f"world must be one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Trial:
    """Results of one system after one log.

    Attributes:
        system: its name.
        size: interactions it learned from.
        seed: of the population and the log.
        value: mean expected reward of its decisions for people it has never seen.
        regret: mean expected reward of the best decisions minus the value.
        per_visit: mean sum of expected rewards over a visit, in which moods follow from decisions.
        estimated: the value as the service would estimate it, from a log of the same people; None
            if it is refused.
        interval: of the estimate, 95 %; None likewise.
        learning_seconds: from prepared input to a policy.
        decision_seconds: median, from five scores and a context, in process, one at a time.
        size_bytes: size of the stored policy.
    """

    system: str
    size: int
    seed: int
    value: float
    regret: float
    per_visit: float
    estimated: float | None
    interval: tuple[float, float] | None
    learning_seconds: float
    decision_seconds: float
    size_bytes: int


@dataclass(frozen=True)
class HeldOut:
    """Held-out people with a log of theirs and their exact mean rewards.

    Attributes:
        population: the people.
        log: their interactions under the behaviour policy.
        mean: exact mean reward of all actions in each of these, (n, 27).
        modelled: estimates of it by the reward model, from the log alone, (n, 27).
        visits: first situations of some of their visits.
    """

    population: Population
    log: Log
    mean: NDArray[np.float64]
    modelled: NDArray[np.float32]
    visits: Situations

    @property
    def best(self) -> float:
        """Mean expected reward of the best decisions."""
        return float(self.mean.max(axis=1).mean())

    def value(self, dist: NDArray[np.float64]) -> float:
        """Returns the mean expected reward under probabilities of all actions, (n, 27)."""
        return float((dist * self.mean).sum(axis=1).mean())

    def estimate(self, dist: NDArray[np.float64]) -> Estimate:
        """Returns the value as the service would estimate it, from the log alone."""
        log = self.log
        seen = rounds(
            log.reward, log.action, log.propensity, dist, self.modelled, cluster=log.at.person
        )
        return estimate(ESTIMATOR, seen)

    def per_visit(self, system: Contestant, rng: np.random.Generator) -> float:
        """Returns the mean sum of expected rewards over whole visits that the system decides."""
        at, earned = self.visits, 0.0
        while len(at):
            dist = system.action_dist(self.population.traits[at.person], contexts(at))
            mean = expected_rewards(self.population, at, RewardWeights())
            earned += float((dist * mean).sum())
            at = next_situations(rng, at, react(rng, self.population, at, draw(rng, dist)))
        return earned / len(self.visits)


def draw_held_out(rng: np.random.Generator, plan: Plan, world: World = OWN) -> HeldOut:
    """Draws held-out people of a world and simulates their log."""
    population = _draw_enough(rng, plan.held_out, world)
    log = simulate(rng, population, plan.held_out)
    return HeldOut(
        population=population,
        log=log,
        mean=expected_rewards(population, log.at, RewardWeights()),
        modelled=estimate_rewards(
            SPACE, log.state, log.action.astype(np.uint8), log.reward, log.at.person
        ),
        visits=draw_visits(rng, population, np.arange(len(population)), START)[: plan.visits],
    )


def draw_logs(plan: Plan, seed: int) -> tuple[Log, HeldOut]:
    """Draws the world of a seed, the largest log of people there, and people to judge by."""
    rng, world, largest = np.random.default_rng(seed), draw_world(plan.world, seed), plan.sizes[-1]
    log = simulate(rng, _draw_enough(rng, largest, world), largest)
    return log, draw_held_out(rng, plan, world)


def _draw_enough(rng: np.random.Generator, n: int, world: World) -> Population:
    """Draws so many people that their first n interactions are the beginning of a week."""
    each = INTERACTIONS_PER_PERSON if world is OWN else _IN_OTHER_WORLDS
    return draw_population(rng, max(100, n // each), world)


def trials(
    plan: Plan, systems: Sequence[Contestant], on_next: Callable[[str, int, int], None]
) -> Iterator[Trial]:
    """Yields the trial of every system on every log, seed by seed.

    Args:
        plan: size of the comparison.
        systems: those installed.
        on_next: called before each trial with its system, size and seed.
    """
    on_next("compiling", plan.sizes[0], 0)
    for seed in range(plan.seeds):
        log, held_out = draw_logs(plan, seed)
        if seed == 0:
            _warm_up(systems, log[: plan.sizes[0]])
        for size in plan.sizes:
            for system in systems:
                on_next(system.name, size, seed)
                yield _trial(system, log[:size], held_out, seed)


def _warm_up(systems: Sequence[Contestant], log: Log) -> None:
    """Compiles everything that is compiled at first use."""
    for system in systems:
        system.prepare(log)
        system.reset()
        system.learn()


def _trial(system: Contestant, log: Log, held_out: HeldOut, seed: int) -> Trial:
    system.prepare(log)
    system.reset()
    began = time.perf_counter()
    system.learn()
    spent = time.perf_counter() - began
    dist = system.action_dist(held_out.log.traits, held_out.log.context)
    value, estimated = held_out.value(dist), held_out.estimate(dist)
    return Trial(
        system=system.name,
        size=len(log),
        seed=seed,
        value=value,
        regret=held_out.best - value,
        # Equal draws for all, as far as their visits go alike.
        per_visit=held_out.per_visit(system, np.random.default_rng(seed)),
        estimated=None if estimated.reason else estimated.value,
        interval=None
        if estimated.reason
        else (estimated.intervals[0].low, estimated.intervals[0].high),
        learning_seconds=spent,
        decision_seconds=_decision_seconds(system, held_out.log),
        size_bytes=system.size(),
    )


def _decision_seconds(system: Contestant, log: Log) -> float:
    """Returns the median seconds of a decision."""
    questions = log[:_TIMED_QUESTIONS].questions()
    decide, encode = system.decide, system.encode
    spent = []
    for _ in range(_TIMED_ROUNDS):
        began = time.perf_counter()
        for traits, context in questions:
            decide(encode(traits, context))
        spent.append(time.perf_counter() - began)
    return statistics.median(spent) / len(questions)
