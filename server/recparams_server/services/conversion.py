"""Conversion of rows of the run log and of model versions to messages."""

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import datetime
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import evaluation_pb2, models_pb2, training_pb2
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.registry import DEFAULT_ALGORITHM
from recparams_server.contract.enums import enum_number
from recparams_server.contract.errors import LONGEST_DESCRIPTION, invalid

_PAGE_DEFAULT = 20
_PAGE_MOST = 100
_INT64_MOST = (1 << 63) - 1


def stamp(moment: datetime | str | None) -> Timestamp | None:
    """Returns a timestamp message of a datetime or an ISO 8601 text; None for None."""
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(datetime.fromisoformat(moment) if isinstance(moment, str) else moment)
    return message


def hyperparameters_message(values: dict[str, Any]) -> training_pb2.Hyperparameters:
    """Returns hyperparameters with every field set; those of one algorithm are in the map."""
    names = {f.name for f in fields(Hyperparameters)}
    known = Hyperparameters(**{name: value for name, value in values.items() if name in names})
    return training_pb2.Hyperparameters(
        **{**known.to_dict(), "settling_seconds": known.settling},
        algorithm_parameters={name: v for name, v in values.items() if name not in names},
    )


def run_status(name: str) -> training_pb2.TrainingRunStatus.ValueType:
    """Returns the status of a system_tasks row as the contract has it."""
    return enum_number(training_pb2.TrainingRunStatus, name)


def run_outcome(name: str | None) -> training_pb2.TrainingOutcome.ValueType:
    """Returns the outcome of a system_tasks row as the contract has it."""
    return enum_number(training_pb2.TrainingOutcome, name or "unspecified")


def run_message(row: Any) -> training_pb2.TrainingRun:
    """Returns the training run of a system_tasks row."""
    metadata = json.loads(row["metadata"])
    request, result = metadata["request"], metadata.get("training", {})
    rebuild = request["rebuild"]
    mode = training_pb2.TRAINING_MODE_REBUILD if rebuild else training_pb2.TRAINING_MODE_INCREMENTAL
    return training_pb2.TrainingRun(
        run_id=row["id"],
        request_id=row["request_id"],
        status=run_status(row["status"]),
        mode=mode,
        stage=row["stage"],
        progress=row["progress"],
        created_at=stamp(row["executed_at"]),
        started_at=stamp(row["started_at"]),
        finished_at=stamp(row["finished_at"]),
        window_start=stamp(result.get("window_start")),
        window_end=stamp(request["as_of"]),
        hyperparameters=hyperparameters_message(request["hyperparameters"]),
        model_version=result.get("model_version") or 0,
        parent_version=result.get("parent_version") or 0,
        users_trained=result.get("users_trained", 0),
        interactions_trained=result.get("interactions_trained", 0),
        average_reward=result.get("average_reward", 0.0),
        interactions_waiting=result.get("interactions_waiting", 0),
        statistics=_statistics(result["agent_stats"]) if "agent_stats" in result else None,
        error=row["error"],
        stage_seconds=result.get("stage_seconds", {}),
        min_interactions_per_user=request["min_interactions_per_user"],
        gates=[ParseDict(gate, evaluation_pb2.Gate()) for gate in result.get("gates", [])],
        holdout=ParseDict(result["holdout"], evaluation_pb2.HoldoutEvaluation())
        if result.get("holdout")
        else None,
        objectives=evaluation_pb2.Objectives(**request["objectives"])
        if "objectives" in request
        else None,
        served_percent=result.get("served_percent", 0.0),
        algorithm=request.get("algorithm", DEFAULT_ALGORITHM),
        outcome=run_outcome(row["outcome"]),
        outcome_reason=result.get("outcome_reason", ""),
    )


def model_message(row: Any, active_version: int, problem: str = "") -> models_pb2.Model:
    """Returns the model version of a row, as much of it as can be read.

    Args:
        row: of `model_rows.describe`.
        active_version: the version to serve.
        problem: why it cannot be used, if that is known.
    """
    message = models_pb2.Model(
        version=row["version"],
        active=row["version"] == active_version,
        created_at=stamp(row["created_at"]),
        origin=enum_number(models_pb2.ModelOrigin, row["origin"]),
        run_id=row["run_id"] or 0,
        parent_version=row["parent_version"] or 0,
        algorithm=row["algorithm"],
        checksum=row["checksum"],
        stored_bytes=row["stored_bytes"],
        main_line=row["main_line"],
        halted_at=stamp(row["halted_at"]),
        halted_reason=row["halted_reason"],
    )
    unreadable = []
    for column, part in _MODEL_PARTS.items():
        try:
            message.MergeFrom(part(json.loads(row[column])))
        except Exception as failure:
            unreadable.append(f"{column} ({type(failure).__name__}: {failure})")
    if unreadable and not problem:
        problem = f"model version {row['version']}: bad {', '.join(unreadable)}"
    message.problem = problem[:LONGEST_DESCRIPTION]
    return message


def _space_part(space: dict[str, Any]) -> models_pb2.Model:
    names = ("bins", "content_types", "moods", "times_of_day")
    return models_pb2.Model(**{name: space[name] for name in names})


_MODEL_PARTS: dict[str, Callable[[Any], models_pb2.Model]] = {
    "space": _space_part,
    "hyperparameters": lambda values: models_pb2.Model(
        hyperparameters=hyperparameters_message(values)
    ),
    "metrics": lambda values: models_pb2.Model(statistics=_statistics(values)),
    "objectives": lambda values: models_pb2.Model(objectives=evaluation_pb2.Objectives(**values)),
}
"""By column of JSON, the part of the message that it fills."""


def _statistics(metrics: dict[str, Any]) -> training_pb2.ModelStatistics:
    names = [f.name for f in training_pb2.ModelStatistics.DESCRIPTOR.fields]
    return training_pb2.ModelStatistics(**{name: metrics[name] for name in names})


def page_bounds(page_size: int, page_token: str) -> tuple[int, int | None]:
    """Returns the size of a page, and the number it begins below. Raises INVALID_ARGUMENT."""
    if not 0 <= page_size <= _PAGE_MOST:
        raise invalid("page_size", f"must be from 1 to {_PAGE_MOST}, not {page_size}")
    is_number = page_token.isascii() and page_token.isdigit() and len(page_token) < 20
    if page_token and not (is_number and int(page_token) <= _INT64_MOST):
        raise invalid("page_token", "is not a next_page_token of this service")
    return page_size or _PAGE_DEFAULT, int(page_token) if page_token else None
