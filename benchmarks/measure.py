"""Measuring side by side: interleaved rounds, medians, and processes pinned to cores."""

import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace

BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True)
class Effort:
    """How much to measure. `QUICK` shows that a benchmark runs, and nothing else."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """A size or a number of rounds."""
        return quick if self.quick else full

    @property
    def space(self) -> StateSpace:
        """State space of learning."""
        return StateSpace(bins=2) if self.quick else StateSpace()

    @property
    def smoothing(self) -> Smoothing:
        """Smoothing, with the bins of serving."""
        return Smoothing(serving_bins=3) if self.quick else Smoothing()

    @property
    def settings(self) -> dict[str, object]:
        """Settings of a server with that space and smoothing."""
        return {"bins": self.space.bins, "serving_bins": self.smoothing.serving_bins}


FULL, QUICK = Effort(quick=False), Effort(quick=True)


def side_by_side(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> dict[str, float]:
    """Median seconds of one call of each candidate, by name.

    Every round times each of them once, in turn, so that a slow spell of the machine hits all. Of
    several rounds the first is preceded by one that is not timed.

    Args:
        candidates: what to time, by name.
        rounds: how often to go round.
        calls: calls in a row that are timed together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    if rounds > 1:
        for call in candidates.values():
            call()
    for _ in range(rounds):
        for name, call in candidates.items():
            gc.collect()
            started = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[name].append((time.perf_counter() - started) / calls)
    return {name: statistics.median(found) for name, found in seconds.items()}


def cores() -> tuple[int, int]:
    """A core for what is measured and one for what loads it; the same where there is but one."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Lets no process that is started meanwhile take the cores of the others."""
    before = os.environ.get(BLAS_THREADS)
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BLAS_THREADS]
        else:
            os.environ[BLAS_THREADS] = before


def peak_bytes(usage: resource.struct_rusage) -> int:
    """Returns the most memory that a process had, which on Linux includes its parent's at first."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
