"""Activations: the record of what is served to whom, of which the newest row counts."""

import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from recparams_rl.arms import NEVER_ACTIVATED, RL, RULES_VERSION, Activation, Split
from recparams_rl.evaluation.rollout import Ramp
from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.store.database import Connection

MODEL_CHANNEL = "recparams_model"


_SELECT = """
SELECT id, version, rollback_to, percent, rule_based_percent, salt, holdback_percent, baseline,
    experiment_id, activated_at, reason, automatic
FROM model_activations
"""


async def current_activation(connection: Connection) -> Activation:
    """Returns the newest activation that a decision token has room for, or `NEVER_ACTIVATED`.

    A row with a higher number is passed over, so that what follows it counts.
    """
    row = await connection.fetchrow(
        _SELECT + "WHERE id <= $1 ORDER BY id DESC LIMIT 1", LARGEST_NUMBER
    )
    return _activation(row)


async def newest_passed_over(connection: Connection) -> int:
    """Returns the highest number of an activation that `current_activation` passes over, or 0."""
    return int(
        await connection.fetchval(
            "SELECT coalesce(max(id), 0) FROM model_activations WHERE id > $1", LARGEST_NUMBER
        )
    )


async def fetch_activation(connection: Connection, activation_id: int) -> Activation:
    """Returns an activation by its number, or `NEVER_ACTIVATED`."""
    return _activation(await connection.fetchrow(_SELECT + "WHERE id = $1", activation_id))


async def history(connection: Connection, size: int) -> list[tuple[Activation, Any]]:
    """Returns up to `size` newest activations, newest first, each with its row.

    The row has activated_at, reason and automatic.
    """
    rows = await connection.fetch(
        _SELECT + "WHERE id <= $2 ORDER BY id DESC LIMIT $1", size, LARGEST_NUMBER
    )
    return [(_activation(row), row) for row in rows]


async def experiment(connection: Connection, experiment_id: int) -> list[Activation]:
    """Returns the activations of an experiment in order; empty if there is no such experiment."""
    rows = await connection.fetch(_SELECT + "WHERE experiment_id = $1 ORDER BY id", experiment_id)
    return [_activation(row) for row in rows]


async def in_force_since(connection: Connection, since: datetime) -> list[Activation]:
    """Returns the activations that were in force at some time since an instant, in order."""
    first = await connection.fetchval(
        "SELECT max(id) FROM model_activations WHERE activated_at <= $1", since
    )
    rows = await connection.fetch(_SELECT + "WHERE id >= $1 ORDER BY id", first or 0)
    return [_activation(row) for row in rows]


async def newest_experiment(connection: Connection) -> int | None:
    """Returns the number of the newest experiment, or None."""
    number: int | None = await connection.fetchval(
        "SELECT max(experiment_id) FROM model_activations"
    )
    return number


async def experiment_times(connection: Connection, experiment_id: int) -> Any:
    """Returns started_at and ended_at of an experiment; ended_at is None while it goes on."""
    return await connection.fetchrow(
        """
        SELECT min(activated_at) AS started_at, (
            SELECT min(activated_at) FROM model_activations AS later
            WHERE later.id > max(model_activations.id)
        ) AS ended_at
        FROM model_activations WHERE experiment_id = $1
        """,
        experiment_id,
    )


def _activation(row: Any) -> Activation:
    if row is None:
        return NEVER_ACTIVATED
    return Activation(
        row["id"],
        row["version"] or RULES_VERSION,
        row["rollback_to"],
        Split(row["percent"], row["rule_based_percent"], row["salt"], row["holdback_percent"]),
        row["baseline"] or RULES_VERSION,
        row["experiment_id"],
    )


@dataclass(frozen=True)
class Shares:
    """Shares of the people, in percent: as those of `Split`."""

    percent: float
    rule_based_percent: float
    holdback_percent: float


async def activate(
    connection: Connection, version: int, holdback: float, reason: str
) -> tuple[Activation, int]:
    """Serves a version to everybody who is not held back, within the caller's transaction.

    Replicas hear of it when the transaction commits.

    Args:
        connection: in a transaction.
        version: the version to serve.
        holdback: percent of the people that is held back.
        reason: for the record.

    Returns:
        (the activation that serves it, the version before).
    """
    current = await lock(connection)
    split = current.split
    if (current.version, split.percent, split.holdback_percent) == (version, 100, holdback):
        return current, current.version
    following = await set_rollout(connection, version, Shares(100.0, 0.0, holdback), reason)
    return following, current.version


async def set_rollout(
    connection: Connection,
    version: int,
    shares: Shares,
    reason: str,
    *,
    automatic: bool = False,
) -> Activation:
    """Serves a version to a share of the people, within the caller's transaction.

    Args:
        connection: in a transaction.
        version: the version to roll out.
        shares: of the version, of the rules and of those held back.
        reason: for the record.
        automatic: True if nobody asked for it.

    Raises:
        ValueError: the shares exceed 100 together.
    """
    current = await lock(connection)
    following = await _successor(connection, current, version, shares)
    return await _add(connection, following, reason, automatic=automatic)


async def promote(
    connection: Connection, version: int, percent: float, holdback: float, reason: str
) -> Activation:
    """Serves a version to a share of the people without being asked, within a transaction.

    The share on the rules stays, and limits that of the version.

    Args:
        connection: in a transaction.
        version: the version to serve.
        percent: of the people, above 0 to 100.
        holdback: percent of the people that is held back.
        reason: for the record.
    """
    rules = (await lock(connection)).split.rule_based_percent
    shares = Shares(min(percent, 100.0 - rules), rules, holdback)
    return await set_rollout(connection, version, shares, reason, automatic=True)


async def ramp_of(connection: Connection, current: Activation) -> Ramp | None:
    """Returns the rollout under way, or None; `current` is the newest activation."""
    if not current.is_ramp:
        return None
    seconds = await seconds_since(connection, current.id)
    return Ramp(current.version, current.split.percent, seconds)


async def seconds_since(connection: Connection, activation_id: int) -> float:
    """Returns the seconds since an activation, by the clock of the database."""
    return float(
        await connection.fetchval(
            "SELECT extract(epoch FROM now() - activated_at) FROM model_activations WHERE id = $1",
            activation_id,
        )
    )


async def _successor(
    connection: Connection, current: Activation, version: int, shares: Shares
) -> Activation:
    """Returns the activation that follows when a version gets these shares, in percent."""
    if current.is_ramp and version != current.version:
        # Whoever is not in the new ramp goes on with what was settled before an unfinished one.
        current = await fetch_activation(connection, current.rollback_to or 0)
    same = version == current.version
    salt = current.split.salt if same else secrets.token_hex(8)
    following = Activation(
        id=0,
        version=version,
        rollback_to=current.rollback_to if same else current.id or None,
        split=Split(shares.percent, shares.rule_based_percent, salt, shares.holdback_percent),
        baseline=current.baseline if same else current.version,
        experiment_id=current.experiment_id if same else None,
    )
    # Another set of arms is another comparison: an arm must not be held to what others did while
    # it had nobody.
    alike = {n: a.version for n, a in following.arms().items()} == {
        n: a.version for n, a in current.arms().items()
    }
    return following if alike else replace(following, experiment_id=None)


async def rollback(connection: Connection, reason: str) -> tuple[Activation, int] | None:
    """Goes back to what was served before the active version, within the caller's transaction.

    A second rollback goes one further back, not forth again. Where the record leads back to what is
    served now, the rules are what came before.

    Returns:
        (the new activation, the version before), or None if the rules are served and nothing came
        before.
    """
    current = await lock(connection)
    if current.rollback_to is None and current.version == RULES_VERSION:
        return None
    target, seen = current, set[int]()
    while target.id not in seen and target.arms() == current.arms():
        seen.add(target.id)
        target = await fetch_activation(connection, target.rollback_to or 0)
    if target.id in seen:
        target = NEVER_ACTIVATED
    return await return_to(connection, target, reason), current.version


async def return_to(
    connection: Connection, target: Activation, reason: str, *, automatic: bool = False
) -> Activation:
    """Serves what an earlier activation served, within the caller's transaction.

    Who is held back stays so.
    """
    held_back = (await lock(connection)).split.holdback_percent
    split = replace(target.split, holdback_percent=held_back)
    following = replace(target, id=0, split=split, experiment_id=None)
    return await _add(connection, following, reason, automatic=automatic)


async def lock(connection: Connection) -> Activation:
    """Locks the record until the transaction ends, and returns the newest activation."""
    await connection.execute("LOCK TABLE model_activations IN SHARE ROW EXCLUSIVE MODE")
    return await current_activation(connection)


async def _add(
    connection: Connection, following: Activation, reason: str, *, automatic: bool = False
) -> Activation:
    split = following.split
    arms = following.arms()
    compares = len(arms) > 1 and RL in arms
    row = await connection.fetchrow(
        """
        INSERT INTO model_activations (
            id, version, rollback_to, percent, rule_based_percent, salt, baseline, experiment_id,
            reason, automatic, holdback_percent
        ) OVERRIDING SYSTEM VALUE
        SELECT id, $1, $2, $3, $4, $5, $6, CASE WHEN $7 THEN coalesce($8, id) END, $9, $10, $11
        FROM nextval(pg_get_serial_sequence('model_activations', 'id')) AS id
        RETURNING *
        """,
        following.version or None,
        following.rollback_to,
        split.percent,
        split.rule_based_percent,
        split.salt,
        following.baseline or None,
        compares,
        following.experiment_id,
        reason,
        automatic,
        split.holdback_percent,
    )
    return _activation(row)
