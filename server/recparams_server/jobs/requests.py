"""Requests of jobs, written by the services and read by the jobs, as JSON in between."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, with_config

from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.registry import DEFAULT_ALGORITHM, settings_of
from recparams_rl.objectives import Objectives

PROCESS, RAY = "process", "ray"
ACTIVE, RULES, RANDOM = "active", "rule-based", "random"


@with_config(extra="forbid")
@dataclass(frozen=True)
class RunRequest:
    """A training run as it was asked for: the `request` of its row.

    Attributes:
        rebuild: learn the whole window from an empty table, not only what is new.
        days_back: length of the window in days; None as `window_start_of`.
        min_interactions_per_user: least number of untrained interactions of a person, from 1.
        hyperparameters: of the algorithm's own type.
        as_of: end of the window.
        activate: serve the new version once it has passed the gates.
        objectives: factors of the reward.
        apart: True for a version that stands apart from the main line: it was asked for with
            objectives or an algorithm of its own.
        algorithm: a name in `LEARNERS`.
        engine: PROCESS or RAY.
        export_folder: an export that Ray's workers read instead of the database; or empty.
    """

    rebuild: bool
    days_back: int | None
    min_interactions_per_user: int
    hyperparameters: Hyperparameters
    as_of: datetime
    activate: bool
    objectives: Objectives = field(default_factory=Objectives)
    apart: bool = False
    algorithm: str = DEFAULT_ALGORITHM
    engine: str = PROCESS
    export_folder: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the request as plain JSON types."""
        # As any: the hyperparameters may be of a type that has more fields than the declared one.
        found: dict[str, Any] = _RUN.dump_python(self, mode="json", serialize_as_any=True)
        return found

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RunRequest":
        """Returns the request that `to_dict` wrote. Raises pydantic.ValidationError."""
        return _RUN.validate_python(data)


@with_config(extra="forbid")
@dataclass(frozen=True)
class EvaluationRequest:
    """Policies to evaluate, and the interactions to evaluate them on.

    Attributes:
        start, end: the period, half open.
        policies: version numbers, `ACTIVE`, `RULES` or `RANDOM`.
        include_trained: keep interactions that an evaluated version was trained on.
        confidence: of the intervals, above 0 and below 1.
        by_segment: estimate by segment as well.
    """

    start: datetime
    end: datetime
    policies: tuple[int | str, ...]
    include_trained: bool = False
    confidence: float = 0.95
    by_segment: bool = True

    def to_json(self) -> str:
        """Returns the request as JSON text."""
        return _EVALUATION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "EvaluationRequest":
        """Returns the request that `to_json` wrote. Raises pydantic.ValidationError."""
        return _EVALUATION.validate_json(text)


@with_config(extra="forbid")
@dataclass(frozen=True)
class TuningRequest:
    """Interactions to tune on: those of a period, half open; and the confidence of intervals."""

    start: datetime
    end: datetime
    confidence: float = 0.95

    def to_json(self) -> str:
        """Returns the request as JSON text."""
        return _TUNING.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "TuningRequest":
        """Returns the request that `to_json` wrote. Raises pydantic.ValidationError."""
        return _TUNING.validate_json(text)


@with_config(extra="forbid")
@dataclass(frozen=True)
class DifferenceRequest:
    """Two versions to compare, and the period of the interactions to compare them on.

    Attributes:
        start, end: the period, half open.
        version, other_version: before and after; 0 is the rules.
    """

    start: datetime
    end: datetime
    version: int
    other_version: int

    def to_json(self) -> str:
        """Returns the request as JSON text."""
        return _DIFFERENCE.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "DifferenceRequest":
        """Returns the request that `to_json` wrote. Raises pydantic.ValidationError."""
        return _DIFFERENCE.validate_json(text)


def _with_own_hyperparameters(data: dict[str, Any]) -> dict[str, Any]:
    """Makes the hyperparameters of the type that the algorithm has for them."""
    algorithm = data.get("algorithm", DEFAULT_ALGORITHM)
    return {**data, "hyperparameters": settings_of(algorithm, data["hyperparameters"])}


_RUN = TypeAdapter(Annotated[RunRequest, BeforeValidator(_with_own_hyperparameters)])
_EVALUATION = TypeAdapter(EvaluationRequest)
_TUNING = TypeAdapter(TuningRequest)
_DIFFERENCE = TypeAdapter(DifferenceRequest)
