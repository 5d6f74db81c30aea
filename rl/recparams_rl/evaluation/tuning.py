"""Choice of a configuration by one's own log: which learner and which hyperparameters suit it.

Every configuration of a grid learns the earlier part of a log, and its policy is valued on the
later part: doubly robust, with one reward model for all, as a difference to the present
configuration on the same rows. Many differences are looked at, so their intervals hold together
(recparams_rl/evaluation/simultaneous.py). They count people, not rows.

A configuration is chosen over the present one only if its interval lies above 0. Of several such,
it is the first in the order of the grid that is not told from the best-looking of them: within
noise the simplest wins, as by the one-standard-error rule (Breiman et al., "Classification and
Regression Trees", 1984, section 3.4.3). More exploration is a price paid now for what later
versions learn, which a log cannot show: configurations that explore otherwise are valued, and never
chosen.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.estimators import DoublyRobust, Floats, Rounds, joined, rounds
from recparams_rl.evaluation.grid import Configuration
from recparams_rl.evaluation.overlap import OVERLAP, coverages
from recparams_rl.evaluation.people import Parts
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.evaluation.simultaneous import standard_errors, together
from recparams_rl.exploration import Exploration
from recparams_rl.learners.registry import LEARNERS
from recparams_rl.policy import GreedyTable, Policy, with_epsilon
from recparams_rl.state import StateSpace
from recparams_rl.transitions import Transitions

Verdict = Literal["present", "better", "worse", "undecided", "alike", "refused"]
Outcome = Literal["better", "best", "undecided"]
OnPolicy = Callable[[Configuration, Policy], None]

PRESENT = "the present settings"
_CHUNK = 1 << 16
_ESTIMATOR = DoublyRobust()


@dataclass(frozen=True)
class Later:
    """n interactions to value policies on, columns of shape (n,).

    Attributes:
        traits: scores 0 to 100, float32 (n, 5).
        context: index of the context, 0 to n_contexts - 1, int32.
        action: uint8, 0 to 26.
        reward: as it is learned, float32.
        pscore: propensity, above 0 up to 1, float32.
        person: whose it is, int64.
    """

    traits: NDArray[np.float32]
    context: NDArray[np.int32]
    action: NDArray[np.uint8]
    reward: NDArray[np.float32]
    pscore: NDArray[np.float32]
    person: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.context)

    def states(self, space: StateSpace) -> NDArray[np.int32]:
        """Returns the states in a space with these contexts, int32 (n,)."""
        found: NDArray[np.int32] = (
            space.cells(self.traits.astype(np.float64)) * space.n_contexts + self.context
        ).astype(np.int32)
        return found


@dataclass(frozen=True)
class Tuned:
    """A configuration as it was valued.

    Attributes:
        configuration: the configuration.
        value: estimated mean reward; NaN where it is refused.
        difference: the value minus that of the present configuration; NaN where it is refused.
        low, high: its simultaneous interval; NaN likewise.
        p_value: of no difference, adjusted for all that were looked at, 0 to 1; NaN likewise.
        verdict: against the present configuration; "alike" if they act the same.
        reason: why it is refused; empty if it is not.
    """

    configuration: Configuration
    value: float
    difference: float
    low: float
    high: float
    p_value: float
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Tuning:
    """All configurations, the present one first, and the choice.

    Attributes:
        rows: in the order of the grid.
        chosen: position of the choice among the rows; 0 keeps the present configuration.
        outcome: "better" if the choice is shown better than the present one, "best" if all others
            are shown worse or act the same, otherwise "undecided".
        confidence: of the intervals together.
        critical: their half-width in standard errors.
        learned: transitions that each learned.
        valued: interactions that each was valued on.
        people: those of whom they are.
    """

    rows: tuple[Tuned, ...]
    chosen: int
    outcome: Outcome
    confidence: float
    critical: float
    learned: int
    valued: int
    people: int


def tune(
    space: StateSpace,
    earlier: Transitions,
    later: Later,
    grid: Sequence[Configuration],
    *,
    confidence: float = 0.95,
    threads: int = 1,
    on_policy: OnPolicy | None = None,
) -> Tuning:
    """Values the configurations of a grid and chooses one.

    Memory is that of one learner, one policy, 27 float32 of each later row, and a float64 of each
    person and configuration.

    Args:
        space: the state space of learning.
        earlier: what is learned, sorted by cell, with traits.
        later: what policies are valued on.
        grid: configurations, the present one first.
        confidence: of all intervals together, above 0 and below 1.
        threads: most that learners may use.
        on_policy: called with each configuration and its policy, before it is valued.

    Raises:
        ValueError: if there is no configuration, or confidence is out of range.
    """
    if not grid or not 0.0 < confidence < 1.0:
        raise ValueError("there must be a configuration, and a confidence above 0 and below 1")
    people = Parts.whole(later.person)
    known = _Known(space, later)
    valued: dict[Configuration, _Valued] = {}
    present: Rounds | None = None
    for one, policy in policies(space, earlier, grid, threads):
        if on_policy is not None:
            on_policy(one, policy)
        seen = known.rounds(policy, one.explores)
        present = seen if present is None else present
        valued[one] = _value(seen, present, people)
        if one == grid[0] and valued[one].reason:
            # Nothing can be compared with it.
            break
    rest = _Valued(nan, nan, np.zeros(0), f"{PRESENT}: {valued[grid[0]].reason}", alike=False)
    found = [valued.get(one, rest) for one in grid]
    rows, chosen, critical = _decide(grid, found, len(later), confidence)
    return Tuning(
        rows=rows,
        chosen=chosen,
        outcome=_outcome(grid, rows, chosen),
        confidence=confidence,
        critical=critical,
        learned=len(earlier),
        valued=len(later),
        people=people.people,
    )


def policies(
    space: StateSpace, transitions: Transitions, grid: Sequence[Configuration], threads: int = 1
) -> Iterator[tuple[Configuration, Policy]]:
    """Yields every configuration with its policy, those of one learner one after another.

    What is learned alike is learned once, and arrays are of one learner at a time.

    Args:
        space: the state space of learning.
        transitions: what is learned, sorted by cell, with traits.
        grid: configurations, distinct.
        threads: most that learners may use.
    """

    def learner_of(one: Configuration) -> int:
        key = one.algorithm, one.hyperparameters
        return next(
            place
            for place, other in enumerate(grid)
            if (other.algorithm, other.hyperparameters) == key
        )

    def policy_of(one: Configuration) -> tuple[int, int]:
        return learner_of(one), [other.smoothing for other in grid].index(one.smoothing)

    for _, of_learner in groupby(sorted(grid, key=policy_of), key=learner_of):
        arrays = None
        for _, of_policy in groupby(list(of_learner), key=policy_of):
            same = list(of_policy)
            learner = LEARNERS[same[0].algorithm](
                space, same[0].hyperparameters, smoothing=same[0].smoothing, arrays=arrays
            )
            if arrays is None:
                learner.learn(transitions, threads=threads)
                arrays = learner.arrays()
            policy = learner.publish()
            for one in same:
                yield one, policy


class _Known:
    """The later part, and the rewards that a model expects there.

    Args:
        space: of learning.
        later: the later part.
    """

    def __init__(self, space: StateSpace, later: Later) -> None:
        self._later = later
        self._expected = estimate_rewards(
            space, later.states(space), later.action, later.reward, later.person
        )

    def rounds(self, policy: Policy, exploration: Exploration) -> Rounds:
        """Returns the later part as a policy with its exploration sees it; made in pieces."""
        later, state = self._later, self._later.states(policy.space)
        pieces = []
        for first in range(0, max(len(later), 1), _CHUNK):
            rows = slice(first, first + _CHUNK)
            dist = explored(policy, exploration, state[rows], later.traits[rows])
            pieces.append(
                rounds(
                    later.reward[rows],
                    later.action[rows],
                    later.pscore[rows],
                    dist,
                    self._expected[rows],
                    later.person[rows],
                )
            )
        return joined(pieces)


def explored(
    policy: Policy, exploration: Exploration, state: NDArray[np.int32], traits: NDArray[Any]
) -> Floats:
    """Returns probabilities of all actions as a policy is served, with exploration, (n, 27).

    Args:
        policy: the policy.
        exploration: how it explores.
        state, traits: as in `Policy.action_dist`.
    """
    epsilon = policy.epsilon if exploration.epsilon is None else exploration.epsilon
    if exploration.by_draws and isinstance(policy, GreedyTable):
        return replace(policy, epsilon=epsilon).exploring_dist(state)
    dist = policy.action_dist(state, traits)
    return dist if epsilon == 0.0 else with_epsilon(dist, epsilon)


@dataclass(frozen=True)
class _Valued:
    """A configuration on the later part.

    Attributes:
        value: its estimate; NaN where it is refused.
        difference: to the present configuration.
        deviations: of the difference by person, as in `together`, (people,).
        reason: why it, or the difference, is refused; empty if it is not.
        alike: True if it does the same as the present one.
    """

    value: float
    difference: float
    deviations: Floats
    reason: str
    alike: bool


def _value(seen: Rounds, present: Rounds, people: Parts) -> _Valued:
    alike = np.array_equal(seen.weight, present.weight) and np.array_equal(
        seen.direct, present.direct
    )
    (covered,) = coverages(seen.weight, people)
    reason = OVERLAP.refusal(covered)
    if reason:
        return _Valued(nan, nan, np.zeros(0), reason, alike)
    terms, theirs = (_ESTIMATOR.terms(one) for one in (seen, present))
    reason = "" if alike else _rare(seen, present, people)
    difference = float((terms - theirs).mean())
    (deviations,) = people.sums(terms - theirs - difference)
    return _Valued(float(terms.mean()), difference, deviations, reason, alike)


def _rare(seen: Rounds, present: Rounds, people: Parts) -> str:
    """Returns why the two cannot be told apart, or an empty string."""
    reason = OVERLAP.difference_refusal(seen.weight, present.weight, people)
    return reason.replace("the first policy", "this").replace("the second policy", PRESENT)


def _decide(
    grid: Sequence[Configuration], found: Sequence[_Valued], n: int, confidence: float
) -> tuple[tuple[Tuned, ...], int, float]:
    """Returns all configurations as valued, the position of the choice, and the critical value."""
    told = [j for j, one in enumerate(found) if not one.reason and not one.alike]
    differences = np.array([found[j].difference for j in told])
    deviations = np.array([found[j].deviations for j in told])
    intervals = together(differences, deviations, n, confidence)
    margins = dict(zip(told, intervals.critical * intervals.errors, strict=True))
    p_values = dict(zip(told, intervals.p_values, strict=True))
    rows = []
    for j, (configuration, one) in enumerate(zip(grid, found, strict=True)):
        # What acts the same differs by nothing, for sure.
        known = j in margins or (one.alike and not one.reason)
        middle, margin = (one.difference, float(margins.get(j, 0.0))) if known else (nan, nan)
        low, high = middle - margin, middle + margin
        verdict: Verdict = "present"
        if j > 0:
            shown: Verdict = "better" if low > 0 else "worse" if high < 0 else "undecided"
            verdict = "refused" if not known else "alike" if one.alike else shown
        p_value = float(p_values.get(j, 1.0)) if known else nan
        rows.append(
            Tuned(configuration, one.value, middle, low, high, p_value, verdict, one.reason)
        )
    better = [j for j in told if rows[j].verdict == "better" and _may_be_chosen(grid, j)]
    if not better:
        return tuple(rows), 0, intervals.critical
    looks_best = max(better, key=lambda j: found[j].difference)

    def told_from_best(j: int) -> bool:
        apart = found[looks_best].deviations - found[j].deviations
        margin = intervals.critical * float(standard_errors(apart, n))
        return found[looks_best].difference - found[j].difference > margin

    chosen = next(j for j in better if not told_from_best(j))
    return tuple(rows), chosen, intervals.critical


def _may_be_chosen(grid: Sequence[Configuration], j: int) -> bool:
    return grid[j].exploration == grid[0].exploration


def _outcome(grid: Sequence[Configuration], rows: Sequence[Tuned], chosen: int) -> Outcome:
    if chosen:
        return "better"
    others = {row.verdict for j, row in enumerate(rows) if j > 0 and _may_be_chosen(grid, j)}
    return "best" if "worse" in others and others <= {"worse", "alike"} else "undecided"
