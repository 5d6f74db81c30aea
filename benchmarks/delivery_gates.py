"""Learning and gates of learning_delivery.py, as recparams_server/jobs/training has them."""

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.comparison import Log as Unseen
from recparams_rl.evaluation.comparison import Target, compare
from recparams_rl.evaluation.gates import Figures, Gate, Thresholds, check, q_bound
from recparams_rl.evaluation.sequential import Verdict
from recparams_rl.learners.base import Learner, Statistics
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.objectives import Objectives
from recparams_rl.policy import Policy
from recparams_rl.reward import RewardWeights
from recparams_rl.smoothing import Smoothing
from recparams_server.jobs.training import holdout
from recparams_server.settings import Settings
from recparams_simulation.compare.logs import SPACE, Log, states

ALGORITHM = "q_learning"
HOLDOUT_SHARE: float = Settings.model_fields["holdout_share"].default
GATE_CONFIDENCE: float = Settings.model_fields["gate_confidence"].default


def new_learner(bins: int) -> Learner:
    """Returns a learner that knows nothing and publishes on so many bins a trait."""
    settings = settings_of(ALGORITHM, {})
    return LEARNERS[ALGORITHM](SPACE, settings, smoothing=Smoothing(serving_bins=bins))


def examine(
    candidate: Policy,
    active: Policy,
    log: Log,
    learned: Statistics,
    visited: tuple[int, int],
) -> tuple[tuple[Gate, ...], Verdict]:
    """Returns the gates of a candidate, and the verdict on it.

    Args:
        candidate: trained on nothing of what is held out.
        active: the version that people outside a rollout are served.
        log: what was just trained, with what was held out.
        learned: statistics of the learner.
        visited: states visited by the candidate and by the active version.
    """
    improvement, reason = improvement_on(log[held_out(log.at.time)], candidate, active)
    figures = Figures(
        interactions=learned.total_updates,
        average_reward=float(log.reward.mean(dtype=np.float64)),
        improvement=improvement,
        improvement_reason=reason,
        largest_q=learned.largest_q,
        q_bound=q_bound(RewardWeights(), Objectives(), Hyperparameters().discount_factor),
        states=visited[0],
        active_states=visited[1],
    )
    return check(figures, Thresholds()), figures.verdict


def held_out(time: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns True for the latest interactions, on which a version is evaluated first, (n,)."""
    return holdout.held_out(time, holdout.split_time(time, HOLDOUT_SHARE))


def improvement_on(
    log: Log, candidate: Policy, active: Policy
) -> tuple[tuple[float, float] | None, str]:
    """Returns the interval of the candidate's value minus the active policy's, or None and why."""
    unseen = Unseen(
        state=states(log.traits, log.context, active.space),
        action=log.action.astype(np.uint8),
        engagement=log.reward,
        pscore=log.propensity.astype(np.float32),
        person=log.at.person,
        traits=log.traits.astype(np.float32),
    )
    targets = [Target("candidate", 1, candidate), Target("active", 0, active)]
    # Each end of a two-sided interval of 90 % is a one-sided bound of 95 %.
    confidence = 2.0 * GATE_CONFIDENCE - 1.0
    found = compare(
        active.space, unseen, targets, Objectives(), confidence=confidence, by_segment=False
    )
    (pair,) = found.pairs
    if pair.difference.reason:
        return None, pair.difference.reason
    return (pair.difference.intervals[0].low, pair.difference.intervals[0].high), ""
