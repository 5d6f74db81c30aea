"""Weeks of use under the service's own rules of delivery, and with every version promoted at once.

In process, without server or database, and with the settings of the service at their defaults but
that it explores on schedule. Beside always promoting it tells what the delivery costs.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.delivery_gates import examine, held_out, new_learner
from benchmarks.delivery_record import Record, Served, are_held_back, arms_of, step_state
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import ARMS, PREVIOUS, RL, RULES_VERSION
from recparams_rl.evaluation.gates import Gate
from recparams_rl.evaluation.rollout import DeliveryRules, next_move, place_candidate
from recparams_rl.evaluation.sequential import Verdict
from recparams_rl.policy import Policy, rule_based_policy
from recparams_rl.reward import RewardWeights
from recparams_rl.state import serving_space
from recparams_simulation.compare.logs import (
    SPACE,
    START,
    Log,
    batch,
    contexts,
    epsilon_greedy,
    joined,
    likeliest,
    play_by,
)
from recparams_simulation.people.population import (
    WEEK,
    Ints,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.simulator import expected_rewards


@dataclass(frozen=True)
class Use:
    """How a service is used.

    Args:
        people: of whom newcomers take the places of those who leave.
        weeks: of use, with a training after each but the last.
        looks: at the arms a week, evenly; the service looks every minute.
        bins: `Smoothing.serving_bins`, 0 for those of learning, which are published much sooner.
    """

    people: int
    weeks: int
    looks: int
    bins: int


@dataclass(frozen=True)
class Event:
    """What became of a version, and when.

    Attributes:
        weeks: since the beginning.
        version: the version.
        what: an outcome of its placement, "advanced" or "taken back".
        percent: of the people who are served it from then on.
        people: with an interaction during the step that ended, in the smaller arm; 0 before any.
    """

    weeks: float
    version: int
    what: str
    percent: float
    people: int = 0


@dataclass(frozen=True)
class Weeks:
    """What weeks of use were worth.

    Attributes:
        reward: exact expected reward of what was served, summed over the interactions of each
            week, (weeks, 2): of all people, and of those who are not held back.
        interactions: their number, (weeks, 2).
        events: what became of the versions, in order.
    """

    reward: NDArray[np.float64]
    interactions: NDArray[np.float64]
    events: tuple[Event, ...]

    def mean(self) -> NDArray[np.float64]:
        """Returns the mean reward of an interaction: of all, and of those not held back, (2,)."""
        found: NDArray[np.float64] = self.reward.sum(axis=0) / self.interactions.sum(axis=0)
        return found

    def by_week(self) -> NDArray[np.float64]:
        """Returns the mean reward of an interaction of each week, of all people, (weeks,)."""
        found: NDArray[np.float64] = self.reward[:, 0] / self.interactions[:, 0]
        return found


class Service:
    """A service and its people; equal seeds give equal people and, served alike, equal use.

    Args:
        seed: of the people.
        use: how it is used.
        rules: of rollouts; None serves every version to all at once, without gates.
    """

    def __init__(self, seed: int, use: Use, rules: DeliveryRules | None) -> None:
        self.seed, self.use, self.rules = seed, use, rules
        self.population = draw_population(np.random.default_rng([seed, 2]), use.people)
        self.users: Ints = np.arange(use.people)
        self._held_back = are_held_back(self.users)
        self.week = 0
        self.record = Record(str(seed))
        self.learner = new_learner(use.bins)
        self.epsilon = self.learner.epsilon
        rule_based = rule_based_policy(serving_space(SPACE, use.bins), 0.0)
        self.versions: dict[int, Policy] = {RULES_VERSION: rule_based}
        self.states = {RULES_VERSION: 0}
        self.waiting: int | None = None
        self.events: list[Event] = []
        self._served: list[Served] = []

    def fork(self, salt: str) -> "Service":
        """Returns a service that goes on from here by itself, but must not learn."""
        found = copy(self)
        found.record, found.events, found._served = self.record.copy(salt), [], []
        found.versions, found.states = self.versions.copy(), self.states.copy()
        return found

    def use_week(self, rules: DeliveryRules | None) -> tuple[Log, NDArray[np.float64]]:
        """Serves everybody for a week, with looks at the arms where there are rules of rollouts.

        Returns:
            The log, and sums as a week's in `Weeks`: rewards and interactions, (2, 2).
        """
        rng = np.random.default_rng([self.seed, 3, self.week])
        everybody = np.arange(len(self.users))
        visits = draw_visits(rng, self.population, everybody, START + self.week * WEEK)
        begin = (visits.time - START - self.week * WEEK) * self.use.looks // WEEK
        logs, leavers, sums = [], [], np.zeros((2, 2))
        placed, arms = -1, everybody
        for look in range(self.use.looks):
            current = self.record.current
            if placed != current.id:
                placed, arms = current.id, arms_of(current, self.users)
            log, gone, earned = self._serve(rng, visits[begin == look], arms)
            logs.append(log)
            leavers.append(gone)
            sums += earned
            if rules is not None:
                self._look(rules, self.week * WEEK + (look + 1) * WEEK // self.use.looks)
        if rules is None:
            self._served = []
        self._replace(np.unique(np.concatenate(leavers)))
        self.week += 1
        return joined(logs), sums

    def _serve(
        self, rng: np.random.Generator, visits: Situations, arms: Ints
    ) -> tuple[Log, Ints, NDArray[np.float64]]:
        """Serves some visits; returns their log, who leaves, and sums as `use_week` does."""
        current = self.record.current
        of_arm = {RL: current.version, PREVIOUS: current.baseline}
        policies = [self.versions[of_arm.get(name, RULES_VERSION)] for name in ARMS]

        def usual(at: Situations) -> NDArray[np.uint8]:
            traits, context = self.population.traits[at.person], contexts(at)
            found = np.empty(len(at), dtype=np.uint8)
            for arm, policy in enumerate(policies):
                rows = arms[at.person] == arm
                if rows.any():
                    found[rows] = likeliest(policy, traits[rows], context[rows])
            return found

        log, gone = play_by(rng, self.population, visits, epsilon_greedy(rng, usual, self.epsilon))
        if not len(log):
            return log, gone, np.zeros((2, 2))
        person = log.at.person
        self._served.append(Served(current.id, self.users[person], arms[person], log.reward))
        mean = expected_rewards(self.population, log.at, RewardWeights())
        chosen = mean[np.arange(len(log)), usual(log.at)]
        earned = (1.0 - self.epsilon) * chosen + self.epsilon * mean.sum(axis=1) / N_ACTIONS
        free = ~self._held_back[person]
        sums = [[earned.sum(), earned[free].sum()], [len(log), free.sum()]]
        return log, gone, np.array(sums, dtype=np.float64)

    def _look(self, rules: DeliveryRules, now: float) -> None:
        """Compares the arms, moves a rollout on or takes it back, and starts what waits."""
        plans = self.record.experiment()
        numbers = {plan.id for plan in plans}
        self._served = [one for one in self._served if one.activation in numbers]
        if plans and self._served:
            version = plans[-1].version
            state = step_state(plans, self._served, self.record.seconds(now))
            move = next_move(state, rules)
            if move.action == "take_back":
                self.record.take_back(now)
                self._note(now, version, "taken back", 0.0, state.people)
            elif move.action == "advance":
                self.record.promote(version, move.percent, now)
                self._note(now, version, "advanced", move.percent, state.people)
        if self.waiting is not None:
            placement = place_candidate((), "undecided", self.record.ramp(now), rules)
            if placement.percent:
                self.start(self.waiting, placement.percent, now)

    def start(self, version: int, percent: float, now: float) -> None:
        """Serves a new version to a share of the people; none waits any longer."""
        self.waiting = None
        self.record.promote(version, percent, now)
        self._note(now, version, "activated" if percent == 100.0 else "started", percent)

    def _note(self, now: float, version: int, what: str, percent: float, people: int = 0) -> None:
        self.events.append(Event(now / WEEK, version, what, percent, people))

    def _replace(self, leavers: Ints) -> None:
        newcomers = draw_population(np.random.default_rng([self.seed, 4, self.week]), len(leavers))
        self.population = self.population.replaced(leavers, newcomers)
        self.users = self.users.copy()
        self.users[leavers] = self.users.max() + 1 + np.arange(len(leavers))
        self._held_back = are_held_back(self.users)

    def train(self, log: Log) -> None:
        """Learns a log on top, and places the new version as the rules of rollouts say."""
        due = batch(log)
        tail = held_out(log.at.time)[due.rows]
        self.learner.learn(due.transitions[~tail])
        early = None if self.rules is None else self.learner.publish()
        self.learner.learn(due.transitions[tail])
        version, now = len(self.versions), float(self.week * WEEK)
        self.versions[version] = self.learner.publish()
        self.states[version] = self.learner.statistics().total_states
        self.epsilon = self.learner.epsilon
        if self.rules is None or early is None:
            self.start(version, 100.0, now)
            return
        gates, verdict = self.examine(early, log, version)
        placement = place_candidate(gates, verdict, self.record.ramp(now), self.rules)
        if placement.percent:
            self.start(version, placement.percent, now)
            return
        self._note(now, version, placement.outcome, 0.0)
        if placement.outcome == "waiting":
            self.waiting = version

    def examine(self, early: Policy, log: Log, version: int) -> tuple[tuple[Gate, ...], Verdict]:
        """Returns the gates of a version, and the verdict on it against the settled one.

        Args:
            early: the policy that is judged on what was held out.
            log: what was just trained.
            version: the version, for what is counted of it.
        """
        settled = self.record.current.settled
        return examine(
            early,
            self.versions[settled],
            log,
            self.learner.statistics(),
            (self.states[version], self.states[settled]),
        )


def deliver(
    seed: int,
    use: Use,
    rules: DeliveryRules | None,
    after_week: Callable[[Service, Log], None] = lambda service, log: None,
) -> Weeks:
    """Returns what weeks of use are worth.

    Args:
        seed, use, rules: as in `Service`.
        after_week: called after each week, before its log is learned.
    """
    service = Service(seed, use, rules)
    sums = []
    for week in range(use.weeks):
        log, earned = service.use_week(rules)
        sums.append(earned)
        after_week(service, log)
        if week < use.weeks - 1:
            service.train(log)
    reward, interactions = np.array(sums).transpose(1, 0, 2)
    return Weeks(reward, interactions, tuple(service.events))
