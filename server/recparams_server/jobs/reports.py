"""Estimates and gates of the learning core as messages of the contract."""

from math import isnan
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from recparams.v1 import evaluation_pb2 as pb
from recparams_rl.evaluation.comparison import Comparison, PairReport, PolicyReport
from recparams_rl.evaluation.gates import Gate
from recparams_rl.evaluation.intervals import Estimate


def estimate_message(estimate: Estimate) -> pb.Estimate:
    """Returns an Estimate; the value is left out where there is none."""
    return pb.Estimate(
        estimator=estimate.name,
        value=None if isnan(estimate.value) else estimate.value,
        intervals=[
            pb.Interval(method=one.method, low=one.low, high=one.high) for one in estimate.intervals
        ],
        interactions=estimate.n,
        users=estimate.clusters,
        effective_sample_size=estimate.effective_sample_size,
        largest_weight=estimate.largest_weight,
        mean_weight=estimate.mean_weight,
        reason=estimate.reason,
    )


def policy_message(report: PolicyReport, trained: int | None) -> pb.PolicyEvaluation:
    """Returns the estimates of a policy.

    Args:
        report: of the policy.
        trained: interactions of the period it was trained on; None where nobody knows.
    """
    return pb.PolicyEvaluation(
        name=report.target.name,
        version=report.target.version,
        estimates=map(estimate_message, report.estimates),
        segments=[
            pb.SegmentEvaluation(
                dimension=segment.dimension,
                value=segment.value,
                estimates=map(estimate_message, segment.estimates),
            )
            for segment in report.segments
        ],
        trained_interactions=trained or 0,
        training_known=trained is not None,
        action_shares=report.action_shares,
        objectives=[
            pb.ObjectiveEstimate(objective=name, estimate=estimate_message(one))
            for name, one in report.objectives.items()
        ],
        pareto_optimal=report.pareto_optimal,
    )


def policy_messages(
    comparison: Comparison, trained: dict[str, int | None]
) -> list[pb.PolicyEvaluation]:
    """Returns the estimates of every policy; `trained` is by name, as in `policy_message`."""
    return [policy_message(one, trained[one.target.name]) for one in comparison.policies]


def pair_message(report: PairReport) -> pb.PolicyDifference:
    """Returns the difference of two policies."""
    return pb.PolicyDifference(
        policy=report.policy, other=report.other, difference=estimate_message(report.difference)
    )


def gate_message(gate: Gate) -> pb.Gate:
    """Returns a gate; the value is left out where there is none."""
    return pb.Gate(
        name=gate.name,
        passed=gate.passed,
        value=gate.value,
        threshold=gate.threshold,
        explanation=gate.explanation,
    )


def message_json(message: Message) -> dict[str, Any]:
    """Returns the JSON form of a message, in which it is stored, with every plain field."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
