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
from recparams_rl.evaluation.intervals import Estimate, difference, estimate
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.numerics import unique_inverse
from recparams_rl.objectives import LEVELS, OBJECTIVES, Objectives
from recparams_rl.policy import Policy
from recparams_rl.state import TRAITS, StateSpace

TERCILES = ("low", "middle", "high")
_CHUNK = 1 << 16


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
    engagement = estimate_rewards(space, log.state, log.action, log.engagement, log.person)
    apart, shares = zip(*(_by_objective(log, one, engagement) for one in targets), strict=True)
    seen = [_weighted(objectives, rounds_of) for rounds_of in apart]
    by_objective = [
        {
            name: estimate(DoublyRobust(), columns, confidence=confidence)
            for name, columns in rounds_of.items()
        }
        for rounds_of in apart
    ]
    optimal = _pareto([[e.value for e in one.values()] for one in by_objective])
    parts = list(segments(space, log.state, log.traits)) if by_segment else []
    return Comparison(
        policies=tuple(
            PolicyReport(
                target=target,
                estimates=tuple(
                    estimate(one, columns, confidence=confidence, rng=rng) for one in ESTIMATORS
                ),
                segments=tuple(
                    Segment(
                        dimension,
                        value,
                        tuple(
                            estimate(one, columns[rows], confidence=confidence)
                            for one in ESTIMATORS
                        ),
                    )
                    for dimension, value, rows in parts
                ),
                action_shares=share,
                objectives=values,
                pareto_optimal=best,
            )
            for target, columns, share, values, best in zip(
                targets, seen, shares, by_objective, optimal, strict=True
            )
        ),
        pairs=tuple(
            _pair(
                targets[a].name,
                targets[b].name,
                difference(DoublyRobust(), seen[a], seen[b], confidence=confidence, rng=rng),
            )
            for a, b in combinations(range(len(targets)), 2)
        ),
    )


def _pair(one: str, other: str, found: Estimate) -> PairReport:
    """Returns a difference whose reason calls the two policies by their names."""
    reason = found.reason.replace("the first policy", one).replace("the second policy", other)
    return PairReport(one, other, replace(found, reason=reason))


def _by_objective(
    log: Log, target: Target, engagement: NDArray[np.float32]
) -> tuple[dict[str, Rounds], tuple[float, ...]]:
    """Returns the log as a policy sees it, with each of `OBJECTIVES` alone as the reward.

    Made in pieces: 27 probabilities a row take much memory.

    Args:
        log: the log.
        target: the policy.
        engagement: estimated for all actions, shape (n, 27).

    Returns:
        Rounds by objective, and the policy's share of each action, 27 numbers.
    """
    cluster = unique_inverse(log.person)[1]
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
                engagement[rows],
                cluster[rows],
            )
        )
        levels.append(dist @ LEVELS)
        taken += dist.sum(axis=0)
    seen = joined(pieces)
    logged = LEVELS[log.action].astype(np.float64)
    # What an action itself brings is known of every action, so nothing of it is estimated.
    by_objective = {OBJECTIVES[0]: seen} | {
        name: replace(seen, reward=column, estimated=column, direct=direct)
        for name, column, direct in zip(
            OBJECTIVES[1:], logged.T, np.concatenate(levels).T, strict=True
        )
    }
    return by_objective, tuple((taken / max(1, len(log))).tolist())


def _weighted(objectives: Objectives, by_objective: dict[str, Rounds]) -> Rounds:
    """Returns rounds whose reward is the weighted sum of the objectives."""
    weights = [getattr(objectives, name) for name in by_objective]

    def total(column: str) -> Floats:
        parts = (getattr(rounds_of, column) for rounds_of in by_objective.values())
        # What counts for nothing costs nothing.
        summed: Floats = np.zeros(len(seen))
        for weight, part in zip(weights, parts, strict=True):
            if weight:
                summed += weight * part
        return summed

    seen = by_objective[OBJECTIVES[0]]
    return replace(
        seen, reward=total("reward"), estimated=total("estimated"), direct=total("direct")
    )


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


def segments(
    space: StateSpace, state: NDArray[np.int32], traits: NDArray[np.float32] | None
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yields dimension, value and a mask of rows, bool (n,), of every segment that has rows.

    Args:
        space: the state space.
        state: int32 (n,), 0 to n_states - 1.
        traits: scores 0 to 100, float32 (n, 5), or None for no segments by trait.
    """
    parts = np.unravel_index(state % space.n_contexts, space.context_shape)
    names = {
        "content_type": space.content_types,
        "mood": space.moods,
        "time_of_day": space.times_of_day,
    }
    for (dimension, words), part in zip(names.items(), parts, strict=True):
        for position, word in enumerate(words):
            rows = part == position
            if rows.any():
                yield dimension, word, rows
    if traits is None:
        return
    for position, trait in enumerate(TRAITS):
        scores = traits[:, position]
        edges = np.quantile(scores, (1 / 3, 2 / 3)) if len(scores) else np.zeros(2)
        tercile = np.searchsorted(edges, scores, side="right")
        for part_of, word in enumerate(TERCILES):
            rows = tercile == part_of
            if rows.any():
                yield trait, word, rows
