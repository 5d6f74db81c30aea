"""What a soak says: a line for each fault while it goes, and Markdown at the end."""

import statistics
from collections.abc import Iterator, Sequence

from benchmarks.report import Table
from benchmarks.soak.faults import BY_NAME
from benchmarks.soak.ledger import CALM, DECISIONS, OK, RECORD, Phase, together
from benchmarks.soak.replicas import Replica
from benchmarks.soak.run import Outcome

WARM_SECONDS = 20.0
SHORTEST_LIFE = 60.0
LOOKS = 10
MIB = 1 << 20
HEADER = (
    f"{'time':>6}  {'fault':<17} {'lasted':>7} {'decided':>8} {'failed':>7} {'by rules':>9} "
    f"{'recorded':>9} {'refused':>8} {'slowest':>8} {'well in':>8}"
)


def line(phase: Phase, began: float) -> str:
    """A fault, or the time before the first, as a row under `HEADER`."""
    well = "" if not phase.lifted else f"{phase.recovery:.1f} s" if phase.recovered else "NOT"
    name = "(warm-up)" if phase.fault == CALM else phase.fault
    cells = (
        f"{phase.ended - began:5.0f}s  {name:<17} {phase.ended - phase.started:6.1f}s",
        f"{phase.count(*DECISIONS, well=True):>8,} {phase.count(*DECISIONS, well=False):>7,}",
        f"{phase.by_rules:>9,} {phase.count(RECORD, well=True):>9,}",
        f"{phase.count(RECORD, well=False):>8,} {_slowest(phase):>7.2f}s {well:>8}",
    )
    return " ".join(cells) + (f"  {phase.note}" if phase.note else "")


def _slowest(phase: Phase) -> float:
    return max((phase.slowest.get(what, 0.0) for what in DECISIONS), default=0.0)


def verdict(outcome: Outcome) -> Table:
    """What must be 0."""
    return Table(
        ("must be 0", "found", "of", ""),
        [
            (
                finding.what,
                f"{finding.count:,}",
                f"{finding.of:,}",
                "; ".join(f"{what} ({n:,})" for what, n in finding.found.most_common(5)),
            )
            for finding in outcome.findings
        ],
    )


def markdown(outcome: Outcome) -> str:
    """The whole summary."""
    plan, ledger = outcome.plan, outcome.ledger
    faults = together(ledger.phases)
    answered = len(ledger.answers)
    parts = [
        "# Soak",
        f"{outcome.seconds:.0f} s, seed {plan.seed}, {plan.replicas} servers, {plan.bins} bins: "
        f"{answered:,} decisions by servers, {len(ledger.acknowledged):,} interactions "
        f"acknowledged, {outcome.versions} versions, {outcome.activations} activations; training "
        f"runs: {_listed(outcome.runs)}. **{'FAILED' if outcome.failed else 'Nothing failed'}**.",
        verdict(outcome).markdown(),
        "## Faults",
        "Calls that a server answered and those that failed, over all times of each kind, "
        "recovery included. *By rules*: people decided for while the server could not find their "
        "stored profile. *Slowest*: of the calls that decide.",
        Table(
            (
                *("fault", "times", "deciding calls", "failed", "by rules"),
                *("recording calls", "failed", "slowest", "longest until all was well"),
            ),
            list(_fault_rows(faults, ledger.phases)),
        ).markdown(),
        *(f"Not done: {name}: {why}." for name, why in outcome.skipped.items()),
        "## Errors",
        Table(("fault", "call", "outcome", "calls"), list(_error_rows(faults))).markdown(),
        "## Memory",
        "Resident, of each server process that lived for a minute; *warm* is the median of its "
        f"looks from {WARM_SECONDS:g} to {2 * WARM_SECONDS:g} s of age, *end* of its last "
        f"{LOOKS} s.",
        Table(
            ("process", "lived", "warm", "end", "most", "growth"),
            [row for replica in outcome.replicas for row in _memory_rows(replica)],
        ).markdown(),
        f"Errors that servers logged: {_listed(outcome.logged)}. The clients' own event loop was "
        f"late by {ledger.late * 1e3:.0f} ms at most. PgBouncer ended by itself "
        f"{outcome.pooler_crashes} times and was started again.",
    ]
    return "\n\n".join(parts) + "\n"


def _listed(counts: "dict[str, int]") -> str:
    return ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())) or "none"


def _fault_rows(faults: dict[str, Phase], phases: Sequence[Phase]) -> Iterator[tuple[str, ...]]:
    for name, whole in faults.items():
        times = [phase for phase in phases if phase.fault == name]
        well = [phase.recovery for phase in times if phase.recovered and phase.lifted]
        missed = sum(not phase.recovered for phase in times)
        yield (
            f"{name}: {BY_NAME[name].about}" if name in BY_NAME else name,
            f"{len(times)}" if name in BY_NAME else "",
            f"{whole.count(*DECISIONS, well=True):,}",
            f"{whole.count(*DECISIONS, well=False):,}",
            f"{whole.by_rules:,}",
            f"{whole.count(RECORD, well=True):,}",
            f"{whole.count(RECORD, well=False):,}",
            f"{_slowest(whole):.2f} s",
            f"NOT, {missed} times" if missed else f"{max(well):.1f} s" if well else "",
        )


def _error_rows(faults: dict[str, Phase]) -> Iterator[tuple[str, ...]]:
    for name, whole in faults.items():
        for (what, outcome), count in sorted(whole.calls.items()):
            if outcome != OK:
                yield name, what, outcome, f"{count:,}"


def _memory_rows(replica: Replica) -> Iterator[tuple[str, ...]]:
    for looks in replica.memory.values():
        start, end = looks[0][0], looks[-1][0]
        if end - start < SHORTEST_LIFE:
            continue
        warm = statistics.median(
            used for at, used in looks if WARM_SECONDS <= at - start < 2 * WARM_SECONDS
        )
        last = statistics.median(used for _, used in looks[-LOOKS:])
        yield (
            replica.name,
            f"{end - start:.0f} s",
            f"{warm / MIB:.0f} MiB",
            f"{last / MIB:.0f} MiB",
            f"{max(used for _, used in looks) / MIB:.0f} MiB",
            f"{(last - warm) / MIB:+.1f} MiB",
        )
