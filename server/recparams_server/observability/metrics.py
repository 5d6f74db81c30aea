"""Prometheus metrics of decisions, reactions and rollouts."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from recparams.v1.rollout_pb2 import GetExperimentResponse
from recparams_rl.arms import Activation
from recparams_rl.policy import SOURCES
from recparams_rl.reward import REACTIONS, RewardWeights, reaction_flags, rewards
from recparams_server.contract.vocabulary import ARM_NAMES

_ACTIVE = Gauge("recparams_active_version", "Version active or being rolled out; 0 is the rules")
_PERCENT = Gauge("recparams_rollout_percent", "Share of the people with that version, 0 to 100")
# A label, so that there is no sample before the count is known: 0 would look like a reset.
_TAKEN_BACK = Gauge("recparams_rollouts_taken_back", "Rollouts that were taken back", ["by"])
WATCHERS = Gauge("recparams_policy_watchers", "Callers that watch the policy on this worker")
_REWARD = Gauge("recparams_arm_reward", "Mean reward of an interaction in the arm", ["arm"])
_LIKES = Gauge("recparams_arm_like_rate", "Share of interactions with a like", ["arm"])
_USERS = Gauge("recparams_arm_users", "People with an interaction in the arm", ["arm"])
_LOW = Gauge("recparams_arm_difference_low", "Lower end of RL minus the arm, in reward", ["arm"])
_HIGH = Gauge("recparams_arm_difference_high", "Upper end of RL minus the arm, in reward", ["arm"])

_SAMPLE_RATIO = Gauge(
    "recparams_sample_ratio_p_value",
    "p-value of the check that every arm has its share of the people",
    ["experiment"],
)
_ARM_GAUGES = (_REWARD, _LIKES, _USERS, _LOW, _HIGH, _SAMPLE_RATIO)

_RECORDED = Counter("recparams_interactions_recorded", "Interactions that were new", ["arm"])
_REACTIONS = Counter("recparams_reactions", "Reactions of those", ["arm", "reaction"])
# A counter only rises: the mean is gained minus lost, by interactions.
_GAINED = Counter("recparams_reward_gained", "Sum of their rewards above 0", ["arm"])
_LOST = Counter("recparams_reward_lost", "Sum of their rewards below 0, without the sign", ["arm"])
_RELOADS = Counter(
    "recparams_policy_reloads",
    "Changes of what is served; failed: the database could not be asked",
    ["outcome"],
)
for _outcome in ("served", "refused", "failed"):
    _RELOADS.labels(_outcome)
NO_ARM = "none"
"""The arm of interactions without a decision token."""


class _Decisions(Collector):
    """A collector that reads the counts of decisions at each scrape, so that counting is cheap."""

    counts: Mapping[tuple[str, int], Sequence[int]] = {}

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(
            "recparams_decisions", "Decisions", labels=["arm", "version", "source"]
        )
        for (arm, version), by_source in list(self.counts.items()):
            for source, count in zip(SOURCES, by_source, strict=True):
                family.add_metric([arm, str(version), source], count)
        yield family


_DECISIONS = _Decisions()
REGISTRY.register(_DECISIONS)


def set_decision_counts(counts: Mapping[tuple[str, int], Sequence[int]]) -> None:
    """Sets the counts that scrapes read: by (arm, version), one a source of a decision."""
    _DECISIONS.counts = counts


def count_reload(outcome: str) -> None:
    """Counts a change of the served policy: "served", "refused" or "failed"."""
    _RELOADS.labels(outcome).inc()


def count_interactions(weights: RewardWeights, new: NDArray[np.void]) -> None:
    """Counts interactions that were stored, their reactions and their rewards, by arm.

    Args:
        weights: what reactions are worth.
        new: their fields, dtype `contract.interaction.FIELDS`.
    """
    arms, masks = new["policy_arm"].clip(min=0), new["reactions"].astype(np.int64)
    worth = rewards(weights, masks, new["completion_rate"], new["mood_change"])
    for number in np.flatnonzero(np.bincount(arms)).tolist():
        arm, its = ARM_NAMES.get(number, NO_ARM), arms == number
        _RECORDED.labels(arm).inc(int(its.sum()))
        _GAINED.labels(arm).inc(float(worth[its].clip(min=0).sum()))
        _LOST.labels(arm).inc(-float(worth[its].clip(max=0).sum()))
        for reaction in REACTIONS:
            _REACTIONS.labels(arm, reaction).inc(int(reaction_flags(masks[its], reaction).sum()))


def set_rollout(activation: Activation) -> None:
    """Sets the active version and its share of the people."""
    _ACTIVE.set(activation.version)
    _PERCENT.set(activation.split.percent)


def set_rollouts_taken_back(count: int) -> None:
    """Sets the number of rollouts that the server took back by itself."""
    _TAKEN_BACK.labels("watch").set(count)


def set_arm_metrics(experiment: GetExperimentResponse) -> None:
    """Sets the metrics of the arms of an experiment in place of those of an earlier one."""
    clear_arm_metrics()
    _SAMPLE_RATIO.labels(experiment.experiment_id).set(experiment.sample_ratio_p_value)
    for arm in experiment.arms:
        name = ARM_NAMES[arm.arm]
        _REWARD.labels(name).set(arm.average_reward)
        _LIKES.labels(name).set(arm.like_rate)
        _USERS.labels(name).set(arm.users)
    for one in experiment.differences:
        if one.HasField("low"):
            _LOW.labels(ARM_NAMES[one.other]).set(one.low)
            _HIGH.labels(ARM_NAMES[one.other]).set(one.high)


def clear_arm_metrics() -> None:
    """Removes the metrics of arms, for when everybody is served alike."""
    for gauge in _ARM_GAUGES:
        gauge.clear()
