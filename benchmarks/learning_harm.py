"""Versions that are worse than the active one: what the gates and their first step make of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.delivery_gates import new_learner
from benchmarks.learning_delivery import Event, Service, Use, Weeks, deliver
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION
from recparams_rl.evaluation.rollout import DeliveryRules, place_candidate
from recparams_rl.policy import GreedyTable, Policy
from recparams_rl.reward import RewardWeights
from recparams_simulation.compare.logs import Log, likeliest, transitions
from recparams_simulation.people.population import WEEK
from recparams_simulation.people.simulator import expected_rewards

LEAST_HARM = 0.1
"""Candidates are worse by more than this, in reward."""

RULES, LITTLE, CORRUPTED, SOME_AT_RANDOM = "the rules", "little learned", "corrupted", "random"
KINDS = RULES, LITTLE, CORRUPTED, SOME_AT_RANDOM
AT_RANDOM_HARMS = 0.11, 0.13, 0.16, 0.22, 0.3
CORRUPTED_HARMS = 0.12, 0.2, 0.3, 0.45, 0.6
"""How much worse a candidate of these kinds is made, seed by seed."""

FEW = 1_500
"""Interactions that are little to learn from."""

WEEKS_OF_STEP = 3


@dataclass(frozen=True)
class Harm:
    """What became of a version that is worse.

    Attributes:
        seed: of the people.
        age: weeks of use before it.
        kind: one of `KINDS`.
        worse: how much worse than the active version it is, exactly, in reward.
        refused: True if the gates refuse it.
        percent: of the people who are served it at first; if it is refused, if it were not.
        fate: what ends that step, "taken back" or "advanced", or "held" if nothing does.
        days: until then.
        people: with an interaction during the step, in the smaller arm; 0 if it is held.
    """

    seed: int
    age: int
    kind: str
    worse: float
    refused: bool
    percent: float
    fate: str
    days: float
    people: int

    @property
    def got_beyond(self) -> bool:
        """True if more people were served it than those of the first step, gates or not."""
        return self.fate == "advanced" or self.percent > DeliveryRules().steps[0]


def deliver_with_harm(
    seed: int, number: int, use: Use, ages: Sequence[int], kinds: Sequence[str]
) -> tuple[Weeks, list[Harm]]:
    """Returns what always promoting is worth, and what became of worse versions on the way.

    Args:
        seed, use: as in `Service`.
        number: of the seed, 0 and up, by which harms are chosen.
        ages: weeks of use after which a version of each kind is tried.
        kinds: of those in `KINDS`.
    """
    found: list[Harm] = []

    def after_week(service: Service, log: Log) -> None:
        if service.week in ages:
            found.extend(try_harm(service, log, kinds, number + ages.index(service.week)))

    return deliver(seed, use, None, after_week), found


def try_harm(service: Service, log: Log, kinds: Sequence[str], number: int) -> list[Harm]:
    """Returns what becomes of a version of each kind that is worse enough.

    Args:
        service: a service that has served the log and not learned it.
        log: of its last week.
        kinds: of those in `KINDS`.
        number: chooses the harm among those of a kind.
    """
    active = service.versions[service.record.current.settled]
    mean = expected_rewards(service.population, log.at, RewardWeights())
    found = []
    for position, kind in enumerate(kinds):
        rng = np.random.default_rng([service.seed, 6, service.week, position])
        bad, harm = bad_policy(rng, service, log, kind, number)
        made = made_worse(rng, active, bad, log, mean, harm)
        if made is not None:
            candidate, worse = made
            found.append(try_candidate(service, log, candidate, kind, worse))
    return found


def bad_policy(
    rng: np.random.Generator, service: Service, log: Log, kind: str, number: int
) -> tuple[Policy, float]:
    """Returns a policy of a kind, and how much worse than the active one a candidate is to be."""
    bins = service.use.bins
    rules = service.versions[RULES_VERSION]
    if kind == RULES:
        return rules, np.inf
    if kind == SOME_AT_RANDOM:
        actions = rng.integers(N_ACTIONS, size=rules.space.n_states).astype(np.uint8)
        table = GreedyTable(rules.space, actions.tobytes(), bytes(rules.space.n_states), 0.0)
        return table, AT_RANDOM_HARMS[number % len(AT_RANDOM_HARMS)]
    learner = new_learner(bins)
    if kind == LITTLE:
        learner.learn(transitions(log[:FEW]))
        return learner.publish(), np.inf
    # As where a client reports what was liked as disliked.
    middle = np.float32(2.0 * log.reward.mean(dtype=np.float64))
    learner.learn(transitions(replace(log, reward=middle - log.reward)))
    return learner.publish(), CORRUPTED_HARMS[number % len(CORRUPTED_HARMS)]


def made_worse(
    rng: np.random.Generator,
    active: Policy,
    bad: Policy,
    log: Log,
    mean: NDArray[np.float64],
    harm: float,
) -> tuple[Policy, float] | None:
    """Returns the active policy with so many of its states' actions replaced that it is worse.

    Args:
        rng: chooses the states.
        active, bad: on the same space; the actions are replaced by those of the latter.
        log: n situations in which they are worth what they are.
        mean: exact mean rewards of all actions there, (n, 27).
        harm: how much worse it is to be, in reward; infinite is as bad as the bad one.

    Returns:
        The policy, and how much worse it is; None if it is not worse enough with all replaced.
    """
    rows, space = np.arange(len(log)), active.space
    every = np.arange(space.n_states)
    nobody = np.zeros((space.n_states, 5))
    mine, theirs = active.likeliest(every, nobody), bad.likeliest(every, nobody)
    worth = mean[rows, likeliest(active, log.traits, log.context)].mean()
    whole = worth - mean[rows, likeliest(bad, log.traits, log.context)].mean()
    order, share = rng.random(space.n_states), 1.0 if harm >= whole else harm / whole
    while True:
        actions = np.where(order < share, theirs, mine)
        made = GreedyTable(space, actions.tobytes(), bytes(space.n_states), 0.0)
        worse = float(worth - mean[rows, likeliest(made, log.traits, log.context)].mean())
        if worse > LEAST_HARM:
            return made, worse
        if share >= 1.0:
            return None
        share = min(1.0, share * 1.05)


def try_candidate(service: Service, log: Log, candidate: Policy, kind: str, worse: float) -> Harm:
    """Returns what becomes of a candidate for the place of the settled version of a service.

    It has all that the gates count of the settled one, so that its worth alone can refuse it. One
    that they refuse is served all the same, to see what the first step would make of it.
    """
    rules = DeliveryRules()
    here = service.fork(f"{service.seed}-{service.week}-{kind}")
    version = len(here.versions)
    here.versions[version] = candidate
    here.states[version] = here.states[here.record.current.settled]
    gates, verdict = here.examine(candidate, log, version)
    refused = place_candidate(gates, verdict, None, rules).outcome == "refused"
    percent, began = rules.start(verdict), float(here.week)
    here.start(version, percent, began * WEEK)
    ends: list[Event] = []
    for _ in range(WEEKS_OF_STEP):
        here.use_week(rules)
        ends = [one for one in here.events if one.what in ("advanced", "taken back")]
        if ends:
            break
    fate, weeks = (ends[0].what, ends[0].weeks) if ends else ("held", float(here.week))
    return Harm(
        seed=service.seed,
        age=service.week,
        kind=kind,
        worse=worse,
        refused=refused,
        percent=percent,
        fate=fate,
        days=7.0 * (weeks - began),
        people=ends[0].people if ends else 0,
    )
