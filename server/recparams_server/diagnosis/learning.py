"""Checks of training, versions and rollouts."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from recparams_rl.arms import RULES_VERSION, Activation
from recparams_rl.evaluation.sample_ratio import MISMATCH, sample_ratio_p_value
from recparams_server.contract.vocabulary import ARM_NUMBERS
from recparams_server.diagnosis.findings import Finding
from recparams_server.settings import Settings
from recparams_server.store import (
    activations,
    deletion,
    diagnosis,
    learning_gain,
    model_rows,
    models,
    system,
    tasks,
)
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import IncompatibleModelError, ModelError

REBUILD = "recparams train --wait --mode rebuild"
OLD = timedelta(days=30)
UNTRAINED = timedelta(days=8)
MANY_REFUSED = 3
NEAR_BOUND = 0.8
MOST_VERSIONS = 100


async def check_training(connection: Connection) -> Finding:
    """Finds training that fails, is refused, or does not happen."""
    last = await diagnosis.last_run(connection)
    waiting = await system.interactions_waiting(connection) or 0
    if last is None:
        said = f"nothing was trained yet; {waiting:,} interactions wait"
        return Finding("training", "warning" if waiting else "ok", said, "recparams train --wait")
    run, _ = last
    if run["status"] == "failed":
        said = f"run {run['id']} failed: {run['error']}"
        return Finding("training", "problem", said, f"recparams runs show {run['id']}")
    refused = await tasks.refused_in_a_row(connection)
    if refused >= MANY_REFUSED:
        said = f"gates refused the versions of the last {refused} runs"
        return Finding("training", "warning", said, f"recparams runs show {run['id']}")
    days = run["seconds_ago"] / 86400
    became = f"its version {run['outcome']}" if run["outcome"] else run["status"]
    said = f"run {run['id']}, {days:.1f} days ago: {became.replace('_', ' ')}"
    if waiting and days > UNTRAINED.days:
        return Finding(
            "training",
            "warning",
            f"{said}; about {waiting:,} interactions wait",
            "recparams train --wait, and recparams serve --schedule '0 1 * * 1'",
        )
    return Finding("training", "ok", said)


async def check_divergence(connection: Connection) -> Finding:
    """Finds Q-values of the last run that near their theoretical bound."""
    last = await diagnosis.last_run(connection)
    gates: list[dict[str, Any]] = [] if last is None else last[1].get("gates", [])
    gate = next((one for one in gates if one["name"] == "q_bound" and "value" in one), None)
    if gate is None:
        return Finding("divergence", "ok", "no Q-values were learned yet")
    said = gate["explanation"]
    if gate["value"] > NEAR_BOUND * gate["threshold"]:
        mend = f"{REBUILD} --learning-rate 0.05"
        return Finding("divergence", "warning" if gate["passed"] else "problem", said, mend)
    return Finding("divergence", "ok", said)


async def check_versions(connection: Connection, settings: Settings) -> list[Finding]:
    """Finds versions that are damaged, and an active one that is old or cannot be served."""
    current = await activations.current_activation(connection)
    findings = [finding async for finding in _damaged(connection, current)]
    try:
        await models.load_plan(connection, current, settings.serving_space())
    except IncompatibleModelError as failure:
        said = f"{failure}, so servers refuse it"
        findings.append(Finding("active version", "problem", said, REBUILD))
    except ModelError as failure:
        findings.append(Finding("active version", "problem", str(failure), _BACK))
    else:
        findings.append(await _active(connection, current))
    return findings


_BACK = "recparams models rollback, or recparams models activate 0 for the rules"
_MENDS = {
    deletion.SERVED: _BACK,
    deletion.ROLLBACKS: "recparams models activate another one in place of a rollback to it",
    deletion.TRAINED_ON: REBUILD,
    deletion.WAITS: "recparams train --wait, whose version takes its place",
    deletion.SHADOWED: "recparams shadow stop",
}
"""By use of a damaged version; one without any can be deleted."""


async def _damaged(connection: Connection, current: Activation) -> AsyncIterator[Finding]:
    rows = await model_rows.page(connection, None, MOST_VERSIONS)
    used = await deletion.in_use(connection, current)
    damaged = 0
    for row in rows:
        problem = await model_rows.problem(connection, row)
        if problem:
            damaged += 1
            use = used.get(row["version"])
            mend = _MENDS[use] if use else f"recparams models delete {row['version']}"
            said = f"{problem}; it {use or 'is not used'}"
            yield Finding("versions", "problem", said, mend)
    if not damaged:
        yield Finding("versions", "ok", f"{len(rows)} newest read whole, none of them damaged")


async def _active(connection: Connection, current: Activation) -> Finding:
    if current.version == RULES_VERSION:
        said, mend = "no version is active: the rules answer", "recparams train --wait"
        newest = await model_rows.page(connection, None, 1)
        return Finding(
            "active version", "warning" if newest else "ok", said, mend if newest else ""
        )
    row = await model_rows.describe(connection, current.version)
    age = datetime.now(UTC) - row["created_at"]
    said = f"version {current.version}, made {age.total_seconds() / 86400:.1f} days ago"
    if age > OLD:
        return Finding("active version", "warning", f"{said}, is stale", "recparams train --wait")
    return Finding("active version", "ok", said)


async def check_rollout(connection: Connection, settings: Settings) -> Finding:
    """Finds arms that do not have their shares of the people."""
    current = await activations.current_activation(connection)
    if current.experiment_id is None:
        return Finding("sample ratio", "ok", "no arms are compared")
    people = await diagnosis.people_by_arm(connection, current.id)
    shares = {name: arm.share for name, arm in current.arms().items()}
    counts = [people.get(ARM_NUMBERS[name], 0) for name in shares]
    said = "people by arm since the shares changed: " + ", ".join(
        f"{name} {count:,} (expected {share:.1%})"
        for (name, share), count in zip(shares.items(), counts, strict=True)
    )
    if sum(counts) < settings.experiment_burn_in:
        return Finding("sample ratio", "ok", f"{said}; too few to tell")
    p_value = sample_ratio_p_value(counts, list(shares.values()))
    if p_value < MISMATCH:
        return Finding(
            "sample ratio",
            "problem",
            f"{said}; p {p_value:.2g}: the comparison is not to be trusted",
            "recparams rollout experiment; look for callers that lose tokens of one arm",
        )
    return Finding("sample ratio", "ok", said)


async def check_gain(connection: Connection) -> Finding:
    """Finds learning that is worth less than the rules."""
    gain = await learning_gain.newest(connection)
    if gain is None or not gain.HasField("low"):
        return Finding("learning gain", "ok", "not measured, or of too few people")
    said = f"{gain.difference:+.3f} against the rules ({gain.low:+.3f} to {gain.high:+.3f})"
    if gain.high < 0:
        return Finding("learning gain", "problem", f"{said}: people are worse off", _BACK)
    return Finding("learning gain", "ok", said)
