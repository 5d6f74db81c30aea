"""How people reacted in a period, as one line of JSON on standard output."""

import json
from dataclasses import asdict
from datetime import datetime

import asyncpg
import numpy as np

from rl.evaluation import logged_performance
from rl.reward import rewards
from server.config import Settings
from server.database import database_url
from server.store.columns import SELECT_LIST, Collector, Rows, copy_rows

_QUERY = f"""
SELECT {SELECT_LIST} FROM interactions AS i WHERE i.occurred_at >= $1 AND i.occurred_at < $2
"""  # noqa: S608 - constant column names


async def evaluate(settings: Settings, start: datetime, end: datetime) -> int:
    """Prints the logged performance from start to before end; returns the exit code."""
    weights = settings.reward_weights()
    columns = Collector(user=np.int64, mask=np.int64, reward=np.float32, pscore=np.float32)

    async def add(rows: Rows) -> None:
        mask = rows["reactions"].astype(np.int64)
        reward = rewards(weights, mask, rows["completion_rate"], rows["mood_change"])
        columns.add(user=rows["user"], mask=mask, reward=reward, pscore=rows["propensity"])

    connection = await asyncpg.connect(database_url(settings))
    try:
        await copy_rows(connection, _QUERY, start, end, on_rows=add)
    finally:
        await connection.close()
    performance = logged_performance(
        columns.column("user"),
        columns.column("mask"),
        columns.column("reward"),
        columns.column("pscore"),
    )
    print(json.dumps(asdict(performance)))
    return 0
