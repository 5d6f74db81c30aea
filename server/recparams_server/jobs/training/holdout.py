"""Evaluation of a candidate on the held-out tail of its window, and its gates."""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import evaluation_pb2 as pb
from recparams_rl.arms import RULES_VERSION, Activation
from recparams_rl.evaluation.comparison import Comparison, Log, Target, compare
from recparams_rl.evaluation.gates import Figures, Gate, check, q_bound
from recparams_rl.evaluation.sequential import Verdict
from recparams_rl.objectives import Objectives
from recparams_rl.policy import Policy, rule_based_policy
from recparams_server.jobs.pscores import usable_pscore
from recparams_server.jobs.reports import pair_message, policy_messages
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.training.reading import Columns
from recparams_server.settings import Settings
from recparams_server.store import model_rows, models
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import ModelError

MOST_HELD_OUT = 500_000
CANDIDATE, RULES = "candidate", "rule-based"


def split_time(time: NDArray[np.int64], share: float) -> int | None:
    """Returns the time from which interactions are held out at first: the latest share of them.

    None if none are held out, since nothing would come before them.

    Args:
        time: of all interactions to be trained, int64 (n,), in any order.
        share: share to hold out, 0 to 1.
    """
    earliest = int(time.min()) if len(time) else 0
    return split_of_latest(time, len(time), earliest, share)


def split_of_latest(latest: NDArray[np.int64], n: int, earliest: int, share: float) -> int | None:
    """Returns what `split_time` does of n interactions.

    Args:
        latest: the times of the latest of them, all or at least `MOST_HELD_OUT`, in any order.
        n: how many there are in all.
        earliest: the time of the first of all.
        share: share to hold out, 0 to 1.
    """
    wanted = min(int(n * share), MOST_HELD_OUT)
    if wanted == 0:
        return None
    split = int(np.partition(latest, -wanted)[-wanted])
    return None if earliest >= split else split


def held_out(time: NDArray[np.int64], split: int | None) -> NDArray[np.bool_]:
    """Returns True for each interaction from `split` on, bool (n,); `split` is of `split_time`."""
    return np.zeros(len(time), dtype=np.bool_) if split is None else time >= split


def holdout_log(columns: Columns, rows: NDArray[np.int64]) -> Log:
    """Returns some rows as a log; their propensity may be NaN."""
    traits = columns.interactions.traits
    return Log(
        state=columns.serving_state[rows],
        action=columns.interactions.action[rows],
        engagement=columns.engagement[rows],
        pscore=columns.pscore[rows],
        person=columns.interactions.user[rows],
        traits=None if traits is None else traits[rows],
    )


@dataclass(frozen=True)
class Holdout:
    """Estimated values of candidate, active policy and rules on the interactions held out.

    Attributes:
        interactions: number of interactions held out.
        unknown_propensity: those left out for want of a propensity, or of one above the bound.
        trained: those left out because the active version was trained on them.
        comparison: of the candidate, the active version and the rules.
        active_name: the active policy's name in the comparison; empty if it is not in it.
        reason: why it is not in it.
    """

    interactions: int
    unknown_propensity: int
    trained: int
    comparison: Comparison
    active_name: str
    reason: str

    def improvement(self) -> tuple[tuple[float, float] | None, str]:
        """Returns the interval of the candidate's value minus the active policy's.

        None and the reason if it cannot be estimated.
        """
        for pair in self.comparison.pairs:
            if (pair.policy, pair.other) == (CANDIDATE, self.active_name):
                if pair.difference.reason and self.trained:
                    return None, (
                        f"the active version was trained on {self.trained} of the "
                        f"{self.interactions} interactions held out; {pair.difference.reason}"
                    )
                if pair.difference.reason:
                    return None, pair.difference.reason
                interval = pair.difference.intervals[0]
                return (interval.low, interval.high), ""
        return None, self.reason

    def to_message(self) -> pb.HoldoutEvaluation:
        """Returns the evaluation as the contract has it."""
        comparison = self.comparison
        return pb.HoldoutEvaluation(
            interactions=self.interactions,
            unknown_propensity=self.unknown_propensity,
            trained_interactions=self.trained,
            policies=policy_messages(
                comparison, {report.target.name: 0 for report in comparison.policies}
            ),
            differences=map(pair_message, comparison.pairs),
        )


async def evaluate_holdout(
    work: Connection,
    settings: Settings,
    active: int,
    objectives: Objectives,
    candidate: Policy,
    log: Log,
    ids: NDArray[np.int64],
) -> Holdout:
    """Evaluates a candidate against the active version and the rules.

    Args:
        work: connection to the database.
        settings: the state space.
        active: the active version.
        objectives: factors of the reward.
        candidate: a policy trained on nothing of the log.
        log: the n interactions held out, propensities NaN where unknown.
        ids: of the interactions, int64 (n,).
    """
    space = settings.serving_space()
    targets = [Target(CANDIDATE, 0, candidate)]
    active_name, reason = RULES, ""
    known = ~np.isnan(await usable_pscore(work, settings, log.pscore))
    trained = np.zeros(len(log), dtype=np.bool_)
    if active != RULES_VERSION:
        try:
            policy = await models.load_policy(work, active, space)
            before = await models.load_trained(work, active)
        except ModelError as failure:
            active_name, reason = "", str(failure)
        else:
            active_name = f"version {active} (active)"
            targets.append(Target(active_name, active, policy))
            if before is not None:
                trained = before.covers(log.person, ids)
    targets.append(Target(RULES, RULES_VERSION, rule_based_policy(space, 0.0)))
    comparison = await asyncio.to_thread(
        compare,
        space,
        log[known & ~trained],
        targets,
        objectives,
        # Each end of a two-sided interval of 90 % is a one-sided bound of 95 %.
        confidence=2.0 * settings.gate_confidence - 1.0,
        by_segment=False,
    )
    return Holdout(
        interactions=len(log),
        unknown_propensity=int(np.count_nonzero(~known)),
        trained=int(np.count_nonzero(known & trained)),
        comparison=comparison,
        active_name=active_name,
        reason=reason,
    )


@dataclass(frozen=True)
class Examination:
    """Gates of a new version, and the verdict on it against the version that `against` names."""

    gates: tuple[Gate, ...]
    verdict: Verdict
    against: int


async def examine(
    work: Connection,
    settings: Settings,
    current: Activation,
    request: RunRequest,
    holdout: Holdout | None,
    result: dict[str, Any],
    model: models.NewModel,
) -> Examination:
    """Returns the gates of a new version, and the verdict on it.

    Args:
        work: connection to the database.
        settings: thresholds and rewards.
        current: the activation that is served.
        request: the request of the run.
        holdout: evaluation of the candidate; None if nothing was held out.
        result: of the run, with its average_reward.
        model: the version.
    """
    active_states = 0
    if current.settled != RULES_VERSION:
        active_states = await model_rows.states_visited(work, current.settled)
    improvement, reason = (
        (None, "nothing was held out") if holdout is None else holdout.improvement()
    )
    figures = Figures(
        interactions=model.metrics["total_updates"],
        average_reward=result["average_reward"],
        improvement=improvement,
        improvement_reason=reason,
        largest_q=model.metrics["largest_q"],
        q_bound=q_bound(
            settings.reward_weights(), request.objectives, request.hyperparameters.discount_factor
        ),
        states=None if model.q is None else model.metrics["total_states"],
        active_states=active_states,
    )
    return Examination(check(figures, settings.thresholds()), figures.verdict, current.settled)
