"""Off-policy comparison of several policies on one log."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.estimators import (
    ESTIMATORS,
    DoublyRobust,
    Floats,
    Rounds,
    joined,
    rounds,
)
from recparams_rl.evaluation.intervals import Covered, Estimate, difference_of, estimates
from recparams_rl.evaluation.people import Parts
from recparams_rl.evaluation.reward_model import RewardModel, fit_rewards
from recparams_rl.evaluation.segments import dimensions
from recparams_rl.objectives import LEVELS, OBJECTIVES, Objectives
from recparams_rl.policy import Policy
from recparams_rl.state import TRAITS, StateSpace

_CHUNK = 1 << 14
_DR = DoublyRobust()


@dataclass(frozen=True)
class Log:
    """n interactions with known state and propensity, columns of shape (n,).

    Attributes:
        state: int32, 0 to n_states - 1.
        action: uint8, 0 to 26.
        engagement: reward of the reactions, float32.
        pscore: propensity, above 0 up to 1, float32.
        person: whose it is, int64.
        traits: scores 0 to 100, float32 (n, 5); only segments, and policies that look at them,
            need them.
    """

    state: NDArray[np.int32]
    action: NDArray[np.uint8]
    engagement: NDArray[np.float32]
    pscore: NDArray[np.float32]
    person: NDArray[np.int64]
    traits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: NDArray[np.bool_]) -> "Log":
        return Log(
            self.state[rows],
            self.action[rows],
            self.engagement[rows],
            self.pscore[rows],
            self.person[rows],
            None if self.traits is None else self.traits[rows],
        )


@dataclass(frozen=True)
class Target:
    """A policy to evaluate, without its exploration; None is uniform random."""

    name: str
    version: int
    policy: Policy | None

    def action_dist(self, state: NDArray[np.int32], traits: NDArray[np.float32]) -> Floats:
        """Returns probabilities of all actions, (n, 27); arguments as in `Policy.action_dist`."""
        if self.policy is None:
            return np.full((len(state), N_ACTIONS), 1 / N_ACTIONS)
        return self.policy.action_dist(state, traits)


@dataclass(frozen=True)
class Segment:
    """Estimates on the rows of the log that share one value of one dimension."""

    dimension: str
    value: str
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True)
class PolicyReport:
    """Evaluation of one policy.

    Attributes:
        target: the policy.
        estimates: over the whole log, in the order of `ESTIMATORS`.
        segments: the same by content type, mood, time of day and tercile of each trait.
        action_shares: share of each action on this log, 27 numbers that sum to 1.
        objectives: doubly robust estimate of each of `OBJECTIVES`.
        pareto_optimal: True if no other policy is at least as good in every objective and better
            in one.
    """

    target: Target
    estimates: tuple[Estimate, ...]
    segments: tuple[Segment, ...]
    action_shares: tuple[float, ...]
    objectives: dict[str, Estimate]
    pareto_optimal: bool


@dataclass(frozen=True)
class PairReport:
    """Value of one policy minus that of another, doubly robust and paired."""

    policy: str
    other: str
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """Evaluations of all policies and of all pairs of them."""

    policies: tuple[PolicyReport, ...]
    pairs: tuple[PairReport, ...]


def compare(
    space: StateSpace,
    log: Log,
    targets: Sequence[Target],
    objectives: Objectives,
    *,
    confidence: float = 0.95,
    rng: np.random.Generator | None = None,
    by_segment: bool = True,
) -> Comparison:
    """Evaluates policies on the same interactions.

    Args:
        space: the state space of the log and of the targets.
        log: the logged interactions.
        targets: the policies, with distinct names.
        objectives: weights of the objectives in the reward.
        confidence: of the intervals, above 0 and below 1.
        rng: draws the bootstrap samples of the estimates over the whole log; None draws none.
        by_segment: True to estimate within segments too.
    """
    model = fit_rewards(space, log.state, log.action, log.engagement, log.person)
    whole = Parts.whole(log.person)
    covered: list[Covered] = []
    overall: list[tuple[Estimate, ...]] = []
    by_objective: list[dict[str, Estimate]] = []
    shares: list[tuple[float, ...]] = []
    for target in targets:
        seen = _seen(log, target, model)
        own = Covered.of(seen.weighted(objectives, log.action), whole)
        if covered:
            own = replace(own, rounds=_sharing(own.rounds, covered[0].rounds))
        covered.append(own)
        overall += _estimates(own, confidence, rng)
        by_objective.append(
            {
                name: estimates(_DR, replace(own, rounds=one), confidence)[0]
                for name, one in seen.by_objective(log.action)
            }
        )
        shares.append(seen.shares)
    parts = _segments(space, log, covered, confidence) if by_segment else [()] * len(covered)
    optimal = _pareto([[one.value for one in values.values()] for values in by_objective])
    reports = zip(targets, overall, parts, shares, by_objective, optimal, strict=True)
    return Comparison(
        policies=tuple(PolicyReport(*report) for report in reports),
        pairs=tuple(
            _pair(
                targets[a].name,
                targets[b].name,
                difference_of(_DR, covered[a], covered[b], confidence, rng),
            )
            for a, b in combinations(range(len(targets)), 2)
        ),
    )


def _estimates(
    covered: Covered, confidence: float, rng: np.random.Generator | None = None
) -> list[tuple[Estimate, ...]]:
    """Returns the estimates of a policy in each part, in the order of `ESTIMATORS`."""
    found = (estimates(one, covered, confidence, rng) for one in ESTIMATORS)
    return list(zip(*found, strict=True))


def _segments(
    space: StateSpace, log: Log, policies: Sequence[Covered], confidence: float
) -> list[tuple[Segment, ...]]:
    """Returns the estimates of each policy in every segment that has rows."""
    found: list[list[Segment]] = [[] for _ in policies]
    for dimension, words, positions in dimensions(space, log.state, log.traits):
        parts = Parts(policies[0].parts.person, positions, len(words))
        for own, segments in zip(policies, found, strict=True):
            in_parts = _estimates(Covered.of(own.rounds, parts), confidence)
            segments += [
                Segment(dimension, word, of_part)
                for word, of_part in zip(words, in_parts, strict=True)
                if of_part[0].n
            ]
    return [tuple(segments) for segments in found]


def _pair(one: str, other: str, found: Estimate) -> PairReport:
    """Returns a difference whose reason calls the two policies by their names."""
    reason = found.reason.replace("the first policy", one).replace("the second policy", other)
    return PairReport(one, other, replace(found, reason=reason))


@dataclass(frozen=True)
class _Seen:
    """A log as a policy sees it.

    Attributes:
        engagement: the rounds, with engagement alone as the reward.
        levels: diversity and novelty that the policy gives, mean over its actions, (n, 2).
        shares: of the policy's actions, 27 numbers.
    """

    engagement: Rounds
    levels: Floats
    shares: tuple[float, ...]

    def by_objective(self, action: NDArray[np.uint8]) -> Iterator[tuple[str, Rounds]]:
        """Yields each of `OBJECTIVES`, and the rounds with it alone as the reward."""
        yield OBJECTIVES[0], self.engagement
        # What an action itself brings is known of every action, so nothing of it is estimated.
        logged = LEVELS[action].astype(np.float64)
        for name, column, direct in zip(OBJECTIVES[1:], logged.T, self.levels.T, strict=True):
            yield name, replace(self.engagement, reward=column, estimated=column, direct=direct)

    def weighted(self, objectives: Objectives, action: NDArray[np.uint8]) -> Rounds:
        """Returns the rounds with the weighted sum of the objectives as the reward."""
        reward, estimated, direct = np.zeros((3, len(action)))
        for name, one in self.by_objective(action):
            # What counts for nothing costs nothing.
            if weight := getattr(objectives, name):
                reward += weight * one.reward
                estimated += weight * one.estimated
                direct += weight * one.direct
        return replace(self.engagement, reward=reward, estimated=estimated, direct=direct)


def _seen(log: Log, target: Target, model: RewardModel) -> _Seen:
    """Returns the log as a policy sees it; made in pieces, as 27 probabilities take much memory."""
    traits = np.zeros((len(log), len(TRAITS)), np.float32) if log.traits is None else log.traits
    pieces, levels, taken = [], [], np.zeros(N_ACTIONS)
    for first in range(0, max(len(log), 1), _CHUNK):
        rows = slice(first, first + _CHUNK)
        dist = target.action_dist(log.state[rows], traits[rows])
        pieces.append(
            rounds(
                log.engagement[rows],
                log.action[rows],
                log.pscore[rows],
                dist,
                model.estimates(log.state[rows], log.person[rows]),
                log.person[rows],
            )
        )
        levels.append(dist @ LEVELS)
        taken += dist.sum(axis=0)
    shares = tuple((taken / max(1, len(log))).tolist())
    return _Seen(joined(pieces), np.concatenate(levels), shares)


def _sharing(mine: Rounds, others: Rounds) -> Rounds:
    """Returns rounds that keep what all policies see alike only once."""
    return replace(mine, reward=others.reward, estimated=others.estimated, cluster=others.cluster)


def action_shares(action: NDArray[np.uint8]) -> tuple[float, ...]:
    """Returns the share of each action in a column of shape (n,): 27 numbers, zeros if n is 0."""
    counts = np.bincount(action, minlength=N_ACTIONS)
    return tuple((counts / max(1, len(action))).tolist())


def _pareto(values: list[list[float]]) -> list[bool]:
    """Returns True for each row that no other row dominates; rows with a NaN take no part."""
    known = [not np.isnan(row).any() for row in values]
    return [
        known[i]
        and not any(
            known[j] and all(b >= a for a, b in zip(mine, other, strict=True)) and mine != other
            for j, other in enumerate(values)
        )
        for i, mine in enumerate(values)
    ]
