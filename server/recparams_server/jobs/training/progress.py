"""Progress of a training run."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from recparams_server.observability import tracing

# Where each stage ends on the way from 0 to 1.
_STAGES = {
    "starting": 0.02,
    "reading": 0.45,
    "preparing": 0.55,
    "updating": 0.65,
    "folding_in": 0.67,
    "smoothing": 0.85,
    "evaluating": 0.9,
    "writing": 1.0,
}


@dataclass
class Progress:
    """Progress of a run, written by the stages and read by the reporter.

    Attributes:
        stage: a name in `_STAGES`.
        fraction: share of the stage that is done, 0 to 1.
        seconds: duration of each stage that has ended.
    """

    stage: str = "starting"
    fraction: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Enters a stage and times it."""
        started = time.perf_counter()
        self.stage, self.fraction = stage, 0.0
        with tracing.span(stage):
            yield
        self.seconds[stage] = round(time.perf_counter() - started, 4)

    def advance(self, share: float) -> None:
        """Adds a share to the part of the stage that is done."""
        self.fraction += share

    @property
    def overall(self) -> float:
        """The share of the whole run that is done, 0 to 1."""
        before = 0.0
        for stage, end in _STAGES.items():
            if stage == self.stage:
                return before + min(1.0, self.fraction) * (end - before)
            before = end
        return before
