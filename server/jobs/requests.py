"""What a training run is asked to do: written by the service, read by the trainer."""

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from rl.learners.hyperparameters import Hyperparameters
from rl.learners.registry import DEFAULT_ALGORITHM, settings_of
from rl.objectives import Objectives

PROCESS, RAY = "process", "ray"


@dataclass(frozen=True)
class RunRequest:
    """What a run was asked to do: the `request` of its row.

    Attributes:
        apart: whether the version stands apart from the main line: it was asked for with objectives
            or an algorithm of its own.
        engine: who does the work: PROCESS or RAY.
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
        """As plain JSON types."""
        return {**asdict(self), "as_of": self.as_of.isoformat()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RunRequest":
        """From what `to_dict` gives."""
        algorithm = data.get("algorithm", DEFAULT_ALGORITHM)
        return cls(
            **{
                **data,
                "hyperparameters": settings_of(algorithm, data["hyperparameters"]),
                "objectives": Objectives(**data.get("objectives", {})),
                "as_of": datetime.fromisoformat(data["as_of"]),
            }
        )
