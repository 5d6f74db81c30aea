"""What was estimated, as the JSON form of the contract's messages."""

from math import isnan
from typing import Any

from rl.evaluation.comparison import Comparison, PairReport, PolicyReport
from rl.evaluation.gates import Gate
from rl.evaluation.intervals import Estimate


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """An Estimate message; the value is left out where there is none."""
    value = {} if isnan(estimate.value) else {"value": estimate.value}
    return value | {
        "estimator": estimate.name,
        "intervals": [
            {"method": one.method, "low": one.low, "high": one.high} for one in estimate.intervals
        ],
        "interactions": estimate.n,
        "users": estimate.clusters,
        "effective_sample_size": estimate.effective_sample_size,
        "largest_weight": estimate.largest_weight,
        "mean_weight": estimate.mean_weight,
        "reason": estimate.reason,
    }


def policy_json(report: PolicyReport, trained: int | None) -> dict[str, Any]:
    """A PolicyEvaluation message.

    Args:
        report: of the policy.
        trained: interactions of the period it was trained on; None where nobody knows.
    """
    return {
        "name": report.target.name,
        "version": report.target.version,
        "estimates": [estimate_json(one) for one in report.estimates],
        "segments": [
            {
                "dimension": segment.dimension,
                "value": segment.value,
                "estimates": [estimate_json(one) for one in segment.estimates],
            }
            for segment in report.segments
        ],
        "trained_interactions": trained or 0,
        "training_known": trained is not None,
        "action_shares": list(report.action_shares),
        "objectives": [
            {"objective": name, "estimate": estimate_json(one)}
            for name, one in report.objectives.items()
        ],
        "pareto_optimal": report.pareto_optimal,
    }


def pair_json(report: PairReport) -> dict[str, Any]:
    """A PolicyDifference message."""
    return {
        "policy": report.policy,
        "other": report.other,
        "difference": estimate_json(report.difference),
    }


def gate_json(gate: Gate) -> dict[str, Any]:
    """A Gate message."""
    value = {} if gate.value is None else {"value": gate.value}
    return value | {
        "name": gate.name,
        "passed": gate.passed,
        "threshold": gate.threshold,
        "explanation": gate.explanation,
    }


def comparison_json(comparison: Comparison, trained: dict[str, int | None]) -> dict[str, Any]:
    """The policies and differences of a comparison; `trained` is by name, as in `policy_json`."""
    return {
        "policies": [policy_json(one, trained[one.target.name]) for one in comparison.policies],
        "differences": [pair_json(one) for one in comparison.pairs],
    }
