"""What an evaluation is asked for: written by the services, read by the worker."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime

ACTIVE, RULES, RANDOM = "active", "rule-based", "random"


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate on which interactions.

    Attributes:
        start, end: the period, half open.
        policies: version numbers, `ACTIVE`, `RULES` or `RANDOM`.
        include_trained: keep interactions that an evaluated version was trained on.
        confidence: of the intervals, above 0 and below 1.
        by_segment: whether to look at segments too.
    """

    start: datetime
    end: datetime
    policies: tuple[int | str, ...]
    include_trained: bool = False
    confidence: float = 0.95
    by_segment: bool = True

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), default=datetime.isoformat)

    @classmethod
    def from_json(cls, text: str) -> "EvaluationRequest":
        """From what `to_json` gives."""
        data = json.loads(text)
        for name in ("start", "end"):
            data[name] = datetime.fromisoformat(data[name])
        return cls(**{**data, "policies": tuple(data["policies"])})
