"""Checks of what was recorded: how much, and whether it can be learned from."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from recparams_server.diagnosis.findings import Finding
from recparams_server.settings import Settings
from recparams_server.store import diagnosis
from recparams_server.store.database import Connection

QUIET = timedelta(days=1)
MUCH = 0.1
"""Share from which on what is missing is more than an accident."""
MOSTLY = 0.9
TRY_IT = "recparams simulate --decisions 10000, to try it; callers use RecordInteractions"
SEND_BACK = "send decision_token back with RecordInteractions (docs/quick-start.md)"


async def check_storage(connection: Connection, settings: Settings, now: datetime) -> Finding:
    """Finds what is stored, and partitions that should be gone."""
    found = await diagnosis.volume(connection)
    size = f"{found['bytes'] / 2**20:,.0f} MiB"
    said = f"{size} in all, interactions in {found['partitions']} weekly partitions"
    oldest = found["oldest"]
    # The week after the one in which it ends: a server drops it within an hour.
    late = timedelta(weeks=2) + settings.retention
    if oldest is not None and now.date() - oldest > late:
        return Finding(
            "storage",
            "warning",
            f"{said}, the oldest of {oldest}, past the retention of {settings.retention_weeks} "
            "weeks: no server has dropped it",
            "recparams serve, whose log says why under 'maintenance put off'",
        )
    return Finding("storage", "ok", said)


async def check_interactions(connection: Connection, now: datetime) -> list[Finding]:
    """Finds what is wrong with the newest interactions."""
    found = await diagnosis.newest_interactions(connection)
    if not found["interactions"]:
        return [Finding("data volume", "warning", "nothing was recorded yet", TRY_IT)]
    return list(_of_interactions(found, now))


def _of_interactions(found: Any, now: datetime) -> Iterator[Finding]:
    count = found["interactions"]
    yield _volume(found, now)
    yield _share(
        "decision tokens",
        found["without_token"] / count,
        "came without a decision token: they are learned from, and count for no comparison",
        SEND_BACK,
    )
    yield _share(
        "profiles",
        found["without_profile"] / count,
        "are of people without a personality profile: they wait, and their people get the rules",
        "PutPersonalityProfiles, or personality with each request",
    )
    yield _share(
        "reward sparsity",
        found["without_reaction"] / count,
        "have no reaction, completion or change of mood: nothing is learned of them",
        "record completion_rate too, or RECPARAMS_REWARD_IMPRESSION=-0.05, then "
        "recparams train --wait --mode rebuild",
        limit=MOSTLY,
    )
    # A few that are left of an earlier setting explore nothing.
    if found["random"] < 0.001 * (count - found["without_token"]):
        yield Finding(
            "exploration",
            "warning",
            "every decision was certain: a policy learns only about what it already does, and no "
            "other can be evaluated on this",
            "recparams serve --exploration posterior",
        )
    else:
        share = found["random"] / count
        yield Finding("exploration", "ok", f"{share:.0%} of the decisions left room for others")
    yield from _coverage(found)


def _volume(found: Any, now: datetime) -> Finding:
    said = f"{found['interactions']:,} interactions of {found['people']:,} people looked at"
    ago = now - found["recorded_at"].astimezone(UTC)
    if ago > QUIET:
        said = f"nothing was recorded for {ago.total_seconds() / 86400:.1f} days; {said}"
        return Finding("data volume", "warning", said, "look at the callers of RecordInteractions")
    return Finding("data volume", "ok", f"{said}, the newest")


def _share(check: str, share: float, lacking: str, mend: str, limit: float = MUCH) -> Finding:
    if share <= limit:
        return Finding(check, "ok", f"{1 - share:.0%} of the interactions have what they need")
    return Finding(check, "warning", f"{share:.0%} of the interactions {lacking}", mend)


def _coverage(found: Any) -> Iterator[Finding]:
    """Yields how many decisions of a version rest on what was learned, if one is served."""
    made = found["by_version"]
    if not made:
        return
    rules, learned = found["by_rules"] / made, found["learned"] / made
    said = f"of a version's decisions {learned:.0%} rest on their state's own data, {rules:.0%} on "
    if rules > MOSTLY:
        yield Finding(
            "coverage",
            "warning",
            f"{said}the rules: there is too little data for so many states",
            "RECPARAMS_BINS=3, then recparams train --wait --mode rebuild --days 90",
        )
    else:
        yield Finding("coverage", "ok", f"{said}the rules, and the others on similar states")
