"""How far a training run is."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from server.observability import tracing

# Where each stage ends on the way from 0 to 1.
_STAGES = {
    "starting": 0.02,
    "reading": 0.45,
    "preparing": 0.55,
    "updating": 0.65,
    "evaluating": 0.75,
    "folding_in": 0.82,
    "smoothing": 0.9,
    "writing": 1.0,
}


@dataclass
class Progress:
    """How far a run is; read by the reporter, written by the stages."""

    stage: str = "starting"
    fraction: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Names a stage and times it."""
        started = time.perf_counter()
        self.stage, self.fraction = stage, 0.0
        with tracing.span(stage):
            yield
        self.seconds[stage] = round(time.perf_counter() - started, 4)

    def advance(self, share: float) -> None:
        """So much more of the stage is done."""
        self.fraction += share

    @property
    def overall(self) -> float:
        """Share of the whole run that is done, 0 to 1."""
        before = 0.0
        for stage, end in _STAGES.items():
            if stage == self.stage:
                return before + min(1.0, self.fraction) * (end - before)
            before = end
        return before
