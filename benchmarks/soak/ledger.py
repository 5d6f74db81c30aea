"""What happened: calls by outcome and phase, answers, and what was acknowledged."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc

from recparams_client import Recommendation, RecParamsError
from recparams_client.errors import from_rpc_error

CALM = "none"
OK = "OK"
DECIDE, DECIDE_MANY, RECORD = "decide", "decide many", "record"
DECISIONS = (DECIDE, DECIDE_MANY)
WITHOUT_PROFILE = ("no_profile", "profile_unavailable")
"""Reasons of a server that could not find a stored profile."""


class Answer(NamedTuple):
    """One decision, as it was given.

    Attributes:
        state: of the person, in the context of the request.
        neutral: what the rules say in that context where no profile is known.
        action: index of the parameters that were given; -1 where they belong to no action.
        named: index of the action that was named.
        version, source, propensity, reason: as in the answer.
    """

    state: int
    neutral: int
    action: int
    named: int
    version: int
    source: str
    propensity: float
    reason: str


@dataclass
class Phase:
    """A fault from its start until everything has recovered, or the calm between two.

    Attributes:
        fault: its kind, `CALM` for none.
        spares_servers: whether every server can be reached and runs while it lasts.
        note: what is to be said of it.
        started, lifted, ended: monotonic seconds; `lifted` is when what was broken was put right.
        recovered: whether it ended well.
        calls: by (what was called, outcome).
        slowest: seconds, by what was called.
        by_rules: people decided for without the profile that is stored of them.
    """

    fault: str
    spares_servers: bool
    note: str = ""
    started: float = field(default_factory=time.monotonic)
    lifted: float = 0.0
    ended: float = 0.0
    recovered: bool = True
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    by_rules: int = 0

    @property
    def recovery(self) -> float:
        """Seconds from when it was put right until everything worked."""
        return self.ended - self.lifted

    def count(self, *calls: str, well: bool) -> int:
        """How many of these calls went well, or did not."""
        return sum(
            count
            for (what, outcome), count in self.calls.items()
            if what in calls and (outcome == OK) == well
        )


@dataclass
class Ledger:
    """Everything that is counted.

    Attributes:
        answers: every decision that a server gave.
        acknowledged: by interaction id, the answer it is about; None where that was not kept.
        phases: in order; the last one is now.
        late: most seconds by which the clients' own event loop was late.
    """

    answers: list[Answer] = field(default_factory=list)
    acknowledged: dict[str, Answer | None] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=lambda: [Phase(CALM, True)])
    late: float = 0.0

    @property
    def phase(self) -> Phase:
        """The phase that is now."""
        return self.phases[-1]

    def begin(self, fault: str, *, spares_servers: bool = True) -> Phase:
        """Ends a phase and begins another."""
        self.phase.ended = time.monotonic()
        self.phases.append(Phase(fault, spares_servers))
        return self.phase

    @contextmanager
    def call(self, what: str) -> Iterator["Call"]:
        """Counts a call, and keeps the errors of gRPC to itself."""
        call = Call(self.phase, time.monotonic())
        try:
            yield call
        except RecParamsError as failure:
            call.outcome = _kind(failure)
            call.retry_after = failure.retry_after or 0.5
        except grpc.RpcError as raised:
            call.outcome = _kind(from_rpc_error(raised))
        # What began while it was calm may have met the fault that came.
        phase = self.phase if call.phase.fault == CALM else call.phase
        phase.calls[what, call.outcome] += 1
        phase.by_rules += call.by_rules
        took = time.monotonic() - call.started
        phase.slowest[what] = max(phase.slowest.get(what, 0.0), took)


def together(phases: Sequence[Phase]) -> dict[str, Phase]:
    """Phases of each fault as one, in order of appearance; without times."""
    faults: dict[str, Phase] = {}
    for phase in phases:
        whole = faults.setdefault(phase.fault, Phase(phase.fault, phase.spares_servers))
        whole.calls += phase.calls
        whole.by_rules += phase.by_rules
        for what, took in phase.slowest.items():
            whole.slowest[what] = max(whole.slowest.get(what, 0.0), took)
    return faults


@dataclass
class Call:
    """A call under way.

    Attributes:
        phase: in which it began.
        started: monotonic seconds.
        outcome: `OK`, or the status and reason.
        retry_after: seconds to wait after a refusal.
        by_rules: as in `Phase`.
    """

    phase: Phase
    started: float
    outcome: str = OK
    retry_after: float = 0.5
    by_rules: int = 0

    def answered(self, answers: list[Recommendation]) -> bool:
        """Notes whether a server answered, rather than the client library."""
        self.by_rules = sum(one.fallback_reason in WITHOUT_PROFILE for one in answers)
        if answers[0].is_fallback:
            self.outcome = f"answered by the client ({answers[0].fallback_reason})"
        return not answers[0].is_fallback


def _kind(failure: RecParamsError) -> str:
    return f"{failure.code.name} {failure.reason}".strip()
