"""The interactions of a run, out of the database and chained into transitions."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime

import numpy as np

from rl.objectives import weighed
from rl.reward import rewards
from rl.state import TRAITS
from rl.transitions import Batch, Interactions, prepare
from server.config import Settings
from server.database import Connection
from server.store import training
from server.store.columns import POSTGRES_EPOCH, Collector, Rows, StateEncoder, copy_rows
from server.training_request import RunRequest
from server.worker.holdout import Columns

_COLUMNS = {
    "id": np.int64,
    "user": np.int64,
    "time": np.int64,
    "state": np.int32,
    "action": np.uint8,
    "reward": np.float32,
    "engagement": np.float32,
    "pscore": np.float32,
}


@dataclass(frozen=True)
class Reading:
    """What a run reads.

    Attributes:
        request: what it was asked for.
        window_start: from when.
        through: up to which id.
        traits: whether scores are read too.
    """

    request: RunRequest
    window_start: datetime
    through: int
    traits: bool


async def read(
    work: Connection,
    settings: Settings,
    reading: Reading,
    on_rows: Callable[[int], None],
    condition: str = "true",
) -> Columns:
    """Reads interactions.

    Args:
        work: where they are.
        settings: state space and rewards.
        reading: which.
        on_rows: called with how many there are so far.
        condition: SQL that rows have to satisfy besides.
    """
    encode = StateEncoder(settings.space())
    weights = settings.reward_weights()
    with_traits = reading.traits
    columns = Collector(**_COLUMNS, **(dict.fromkeys(TRAITS, np.float32) if with_traits else {}))

    async def add(rows: Rows) -> None:
        action = rows["action"].astype(np.uint8)
        engagement = rewards(
            weights,
            rows["reactions"].astype(np.int64),
            rows["completion_rate"],
            rows["mood_change"],
        )
        columns.add(
            id=rows["id"],
            user=rows["user"],
            time=rows["time"],
            state=encode(rows),
            action=action,
            reward=weighed(reading.request.objectives, engagement, action),
            engagement=engagement,
            pscore=rows["propensity"],
            **({trait: rows[trait] for trait in TRAITS} if with_traits else {}),
        )
        on_rows(columns.rows)

    query = f"{training.query(reading.request.rebuild)} AND {condition}"
    await copy_rows(work, query, reading.through, reading.window_start, on_rows=add)
    traits = np.stack([columns.column(name) for name in TRAITS], axis=1) if with_traits else None
    names = (field.name for field in fields(Interactions) if field.name != "traits")
    return Columns(
        Interactions(**{name: columns.column(name) for name in names}, traits=traits),
        columns.column("engagement"),
        columns.column("pscore"),
    )


def chained(interactions: Interactions, request: RunRequest, n_contexts: int) -> Batch:
    """What is due of some interactions, all of whose people's interactions are among them."""
    hyperparameters = request.hyperparameters
    return prepare(
        interactions,
        n_contexts=n_contexts,
        session_gap=microseconds(hyperparameters.session_gap_seconds),
        settled_before=instant(request.as_of) - microseconds(hyperparameters.settling),
        min_interactions=request.min_interactions_per_user,
    )


def instant(moment: datetime) -> int:
    """As `Interactions.time` counts."""
    return microseconds((moment - POSTGRES_EPOCH).total_seconds())


def microseconds(seconds: float) -> int:
    """Whole ones."""
    return round(seconds * 1_000_000)
