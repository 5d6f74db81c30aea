"""Interactions as they were served: who reacted how, in which arm of which activation."""

from datetime import datetime
from typing import Any

import numpy as np

from recparams_rl.objectives import weighted_reward
from recparams_rl.reward import reaction_flags, rewards
from recparams_server.settings import Settings
from recparams_server.store.columns import SERVED, Collector, Rows, copy_rows
from recparams_server.store.database import Connection

_QUERY = f"""
SELECT {SERVED.select_list} FROM interactions AS i
WHERE i.activation_id = ANY($1::bigint[]) AND i.occurred_at >= $2
"""  # noqa: S608 - constant column names
_COLUMNS = {
    "user": np.int64,
    "arm": np.int16,
    "activation": np.int64,
    "reward": np.float32,
    "like": np.bool_,
}


async def read_served(
    connection: Connection, settings: Settings, activations: list[int], since: datetime
) -> dict[str, Any]:
    """Reads the interactions that were decided under some activations.

    Args:
        connection: where to read.
        settings: the weights of the reward.
        activations: their numbers.
        since: leaves out what happened earlier.

    Returns:
        Columns of shape (n,): user, arm (the contract's number), activation, reward and like.
    """
    weights, objectives = settings.reward_weights(), settings.objectives()
    collected = Collector(**_COLUMNS)

    async def add(rows: Rows) -> None:
        mask = rows["reactions"].astype(np.int64)
        engagement = rewards(weights, mask, rows["completion_rate"], rows["mood_change"])
        collected.add(
            reward=weighted_reward(objectives, engagement, rows["action"].astype(np.uint8)),
            like=reaction_flags(mask, "like"),
            **{name: rows[name] for name in ("user", "arm", "activation")},
        )

    await copy_rows(connection, _QUERY, activations, since, on_rows=add, layout=SERVED)
    return {name: collected.column(name) for name in _COLUMNS}
