"""What is served to whom in benchmarks/learning_delivery.py, and the looks at it.

The decisions are those of rl/; what the server does around them, in its database and for its
messages, is done here in memory: recparams_server/store/activations.py,
recparams_server/jobs/experiment.py and recparams_server/background/rollout_steps.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
from numpy.typing import NDArray

from recparams_rl.arms import (
    ARMS,
    HOLDBACK_SALT,
    NEVER_ACTIVATED,
    PREVIOUS,
    RL,
    RULE_BASED,
    Activation,
    Split,
    position_of,
)
from recparams_rl.evaluation.rollout import Ramp, StepState
from recparams_rl.evaluation.sample_ratio import MISMATCH, sample_ratio_p_value
from recparams_rl.evaluation.sequential import ALPHA, BURN_IN, ArmTotals, difference
from recparams_server.settings import Settings

HOLDBACK_PERCENT: float = Settings.model_fields["holdback_percent"].default


@dataclass(frozen=True)
class Served:
    """n interactions as they were served under one activation, columns of shape (n,).

    Attributes:
        activation: its number.
        user: number of the person, int64.
        arm: position in `ARMS`, int64.
        reward: float32.
    """

    activation: int
    user: NDArray[np.int64]
    arm: NDArray[np.int64]
    reward: NDArray[np.float32]


class Record:
    """The activations so far, newest last, and when they were.

    Args:
        salt: makes the divisions of this record differ from those of others.
    """

    def __init__(self, salt: str) -> None:
        self._salt = salt
        self._activations = [NEVER_ACTIVATED]
        self._since = [0.0]

    def copy(self, salt: str) -> "Record":
        """Returns a record with the same past, whose divisions from now on are others."""
        found = Record(salt)
        found._activations, found._since = self._activations.copy(), self._since.copy()
        return found

    @property
    def current(self) -> Activation:
        """The newest activation."""
        return self._activations[-1]

    def seconds(self, now: float) -> float:
        """Returns the seconds since the newest activation."""
        return now - self._since[-1]

    def ramp(self, now: float) -> Ramp | None:
        """Returns the rollout under way, or None."""
        current = self.current
        if not current.is_ramp:
            return None
        return Ramp(current.version, current.split.percent, self.seconds(now))

    def experiment(self) -> list[Activation]:
        """Returns the activations of the comparison under way, empty without one."""
        number = self.current.experiment_id
        return [] if number is None else [a for a in self._activations if a.experiment_id == number]

    def promote(self, version: int, percent: float, now: float) -> None:
        """Serves a version to a share of the people, in percent of those not held back."""
        before = self.current
        if before.is_ramp and version != before.version:
            before = self._activations[before.rollback_to or 0]
        same = version == before.version
        salt = before.split.salt if same else f"{self._salt}-{len(self._activations)}"
        following = Activation(
            id=len(self._activations),
            version=version,
            rollback_to=before.rollback_to if same else before.id or None,
            split=Split(percent, 0.0, salt, HOLDBACK_PERCENT),
            baseline=before.baseline if same else before.version,
            experiment_id=before.experiment_id if same else None,
        )
        alike = _versions(following) == _versions(before)
        self._add(following if alike else replace(following, experiment_id=None), now)

    def take_back(self, now: float) -> None:
        """Serves what was served before the rollout; who is held back stays so."""
        target = self._activations[self.current.rollback_to or 0]
        split = replace(target.split, holdback_percent=self.current.split.holdback_percent)
        self._add(replace(target, split=split, experiment_id=None), now)

    def _add(self, following: Activation, now: float) -> None:
        number = len(self._activations)
        arms = following.arms()
        compares = len(arms) > 1 and RL in arms
        experiment = following.experiment_id or number
        self._activations.append(
            replace(following, id=number, experiment_id=experiment if compares else None)
        )
        self._since.append(now)


def _versions(activation: Activation) -> dict[str, int]:
    return {name: arm.version for name, arm in activation.arms().items()}


def arms_of(activation: Activation, users: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the arm of each of n people as a position in `ARMS`, int64 (n,).

    All who are served the rules are in one arm.
    """
    arms = activation.arms()
    placed = [activation.split.arm(str(user)) for user in users.tolist()]
    return np.array([ARMS.index(a if a in arms else RULE_BASED) for a in placed], dtype=np.int64)


def are_held_back(users: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns True for each of n people who is always served the rules, bool (n,)."""
    positions = [100.0 * position_of(HOLDBACK_SALT, str(user)) for user in users.tolist()]
    return np.array(positions) < HOLDBACK_PERCENT


def step_state(plans: Sequence[Activation], served: Sequence[Served], seconds: float) -> StepState:
    """Returns the state of a rollout after a look at its arms.

    Args:
        plans: the activations of the comparison under way, at least one.
        served: interactions under them.
        seconds: since the last of them.
    """
    last = plans[-1]
    names = list(last.arms())
    activation = np.concatenate([np.full(len(one.user), one.activation) for one in served])
    user, arm = (np.concatenate([getattr(s, n) for s in served]) for n in ("user", "arm"))
    reward = np.concatenate([one.reward for one in served])
    totals, people = {}, {}
    for name in names:
        rows = arm == ARMS.index(name)
        people[name] = len(np.unique(user[rows & (activation == last.id)]))
        inverse = np.array([1.0 / plan.arms()[name].share for plan in plans])
        at = np.searchsorted([plan.id for plan in plans], activation[rows])
        never = np.zeros(int(rows.sum()), dtype=np.bool_)
        totals[name] = ArmTotals.of(user[rows], reward[rows], never, weight=inverse[at])
    others = [name for name in names if name != RL]
    found = {
        # Together the comparisons err as seldom as one would.
        name: difference(totals[RL], totals[name], alpha=ALPHA / len(others), burn_in=BURN_IN)
        for name in others
    }
    before = PREVIOUS if PREVIOUS in found else others[0]
    least = min(people[RL], people[before])
    shares = [last.arms()[name].share for name in names]
    return StepState(
        percent=last.split.percent,
        seconds=seconds,
        people=least,
        worse=any(one.verdict == "worse" for one in found.values()),
        mismatch=sample_ratio_p_value([people[name] for name in names], shares) < MISMATCH,
        difference=found[before].value if least else nan,
        low=found[before].low if found[before].started else -inf,
    )
