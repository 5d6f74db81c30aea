"""What learning is worth, by the people who are served the rules, as a message."""

from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import asyncpg
import numpy as np
from numpy.typing import NDArray

from recparams.v1 import evaluation_pb2 as pb
from recparams_rl.arms import RULE_BASED, Activation
from recparams_rl.evaluation.sequential import ArmTotals, difference
from recparams_server.contract.vocabulary import ARM_NUMBERS
from recparams_server.jobs.served import read_served
from recparams_server.settings import Settings
from recparams_server.store.activations import in_force_since
from recparams_server.store.database import database_url


async def measure_gain(settings: Settings, output: BinaryIO) -> int:
    """Writes a serialized LearningGain, without people where there is nothing to compare.

    Returns:
        The exit code.
    """
    now = datetime.now(UTC)
    since = now - timedelta(days=settings.holdback_days)
    connection = await asyncpg.connect(database_url(settings))
    try:
        plans = [one for one in await in_force_since(connection, since) if 0 < rules_share(one) < 1]
        columns = await read_served(connection, settings, [plan.id for plan in plans], since)
    finally:
        await connection.close()
    gain = learning_gain(settings, plans, columns)
    gain.since.FromDatetime(since)
    gain.measured_at.FromDatetime(now)
    output.write(gain.SerializeToString())
    return 0


def rules_share(plan: Activation) -> float:
    """Returns the share of the people that an activation serves the rules, 0 to 1."""
    arm = plan.arms().get(RULE_BASED)
    return 0.0 if arm is None else arm.share


def learning_gain(
    settings: Settings, plans: list[Activation], columns: dict[str, Any]
) -> pb.LearningGain:
    """Compares people who are served what was learned with those who are served the rules.

    Args:
        settings: of the confidence sequence.
        plans: activations under which there are both, in order.
        columns: interactions under them, as `read_served` returns them.
    """
    has_rules = columns["arm"] == ARM_NUMBERS[RULE_BASED]
    rules = np.array([rules_share(plan) for plan in plans])
    position = np.searchsorted([plan.id for plan in plans], columns["activation"])
    learned, control = (
        _totals(columns, rows, 1.0 / share[position[rows]])
        for rows, share in ((~has_rules, 1.0 - rules), (has_rules, rules))
    )
    found = difference(
        learned, control, alpha=settings.experiment_alpha, burn_in=settings.experiment_burn_in
    )
    return pb.LearningGain(
        difference=found.value,
        low=found.low if found.started else None,
        high=found.high if found.started else None,
        confidence=1.0 - settings.experiment_alpha,
        learned_users=learned.persons,
        rule_based_users=control.persons,
    )


def _totals(
    columns: dict[str, Any], rows: NDArray[np.bool_], weight: NDArray[np.float64]
) -> ArmTotals:
    """Sums up some rows, each by the inverse of the share that its group had when it was decided.

    Where shares changed, both groups then have their people spread alike over time.
    """
    user, reward, like = (columns[name][rows] for name in ("user", "reward", "like"))
    return ArmTotals.of(user, reward, like, weight)
