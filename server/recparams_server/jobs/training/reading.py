"""Reading the interactions of a run and chaining them into transitions."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.objectives import Objectives, weighted_reward
from recparams_rl.reward import rewards
from recparams_rl.state import TRAITS
from recparams_rl.transitions import Batch, Interactions, prepare
from recparams_server.jobs.requests import RunRequest
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.columns import POSTGRES_EPOCH, Collector, Rows, StateEncoder, copy_rows
from recparams_server.store.database import Connection

_COLUMNS = {
    "id": np.int64,
    "user": np.int64,
    "time": np.int64,
    "state": np.int32,
    "serving_state": np.int32,
    "action": np.uint8,
    "reward": np.float32,
    "engagement": np.float32,
    "pscore": np.float32,
}
_BESIDE = "serving_state", "engagement", "pscore"
_MEANWHILE = 4
"""Where rows exceed memory, a fourth of what it has room for is read while others are taken."""


@dataclass(frozen=True)
class Columns:
    """Columns of n interactions, with those that evaluation needs.

    Attributes:
        interactions: what is learned from.
        serving_state: the state of the space of serving, int32 (n,), as `interactions.state`.
        engagement: the reward of the reactions, float32 (n,).
        pscore: the propensity, float32 (n,), NaN where unknown.
    """

    interactions: Interactions
    serving_state: NDArray[np.int32]
    engagement: NDArray[np.float32]
    pscore: NDArray[np.float32]

    def to_dict(self) -> dict[str, NDArray[Any]]:
        """Returns all columns by name."""
        beside = {name: getattr(self, name) for name in _BESIDE}
        found = {**vars(self.interactions), **beside}
        return {name: column for name, column in found.items() if column is not None}

    @classmethod
    def from_dict(cls, columns: Mapping[str, NDArray[Any]]) -> "Columns":
        """Makes columns of the result of `to_dict`."""
        learned = {name: column for name, column in columns.items() if name not in _BESIDE}
        return cls(Interactions(**learned), **{name: columns[name] for name in _BESIDE})


@dataclass(frozen=True)
class Reading:
    """Selection of the interactions that a run reads.

    Attributes:
        request: the request of the run.
        window_start: earliest time of an interaction.
        through: highest id of an interaction.
        traits: read personality scores as well.
    """

    request: RunRequest
    window_start: datetime
    through: int
    traits: bool


class Assembler:
    """Assembles columns from rows that arrive in pieces.

    Args:
        settings: state space and rewards.
        objectives: factors of the reward.
        traits: True to keep personality scores as well.
        on_rows: called with the number of rows so far.

    Attributes:
        rows: the number of rows that are held.
    """

    def __init__(
        self,
        settings: Settings,
        objectives: Objectives,
        *,
        traits: bool,
        on_rows: Callable[[int], None],
    ) -> None:
        self._encode = StateEncoder(settings.space())
        self._encode_serving = StateEncoder(settings.serving_space())
        self._weights = settings.reward_weights()
        self._objectives = objectives
        self._traits = TRAITS if traits else ()
        self._columns = self._collector()
        self._taken = 0
        self._on_rows = on_rows

    def _collector(self) -> Collector:
        return Collector(**_COLUMNS, **dict.fromkeys(self._traits, np.float32))

    @property
    def rows(self) -> int:
        return self._columns.rows

    def add(self, rows: Rows) -> None:
        """Adds rows with the fields of `recparams_server.store.columns.INTERACTIONS`."""
        action = rows["action"].astype(np.uint8)
        engagement = rewards(
            self._weights,
            rows["reactions"].astype(np.int64),
            rows["completion_rate"],
            rows["mood_change"],
        )
        self._columns.add(
            id=rows["id"],
            user=rows["user"],
            time=rows["time"],
            state=self._encode(rows),
            serving_state=self._encode_serving(rows),
            action=action,
            reward=weighted_reward(self._objectives, engagement, action),
            engagement=engagement,
            pscore=rows["propensity"],
            **{trait: rows[trait] for trait in self._traits},
        )
        self._on_rows(self._taken + self.rows)

    def columns(self) -> Columns:
        """Returns the columns of all rows that are held, and holds none from then on."""
        column = self._columns.column
        self._taken += self.rows
        self._columns = self._collector()
        names = (field.name for field in fields(Interactions) if field.name != "traits")
        interactions = {name: column(name) for name in names}
        traits = np.stack([column(name) for name in self._traits], axis=1) if self._traits else None
        return Columns(
            Interactions(**interactions, traits=traits),
            column("serving_state"),
            column("engagement"),
            column("pscore"),
        )


async def read(
    work: Connection,
    settings: Settings,
    reading: Reading,
    on_rows: Callable[[int], None],
    condition: str = "true",
    *,
    most: int | None = None,
    on_full: Callable[[Columns], None] | None = None,
) -> Columns:
    """Reads interactions, and returns those that `on_full` was not given.

    Args:
        work: connection to the database.
        settings: state space and rewards.
        reading: the selection.
        on_rows: called with the number of rows so far.
        condition: SQL that rows have to satisfy as well.
        most: interactions to hold in memory; None for all.
        on_full: called in another thread with the columns of so many, and then of fewer at a time,
            while the next are read.
    """
    assembler = Assembler(
        settings, reading.request.objectives, traits=reading.traits, on_rows=on_rows
    )
    taking: asyncio.Task[None] | None = None
    room = most or 0

    async def add(rows: Rows) -> None:
        nonlocal taking, room
        assembler.add(rows)
        if most is not None and on_full is not None and assembler.rows >= room:
            if taking is not None:
                await taking
            taking = asyncio.create_task(asyncio.to_thread(on_full, assembler.columns()))
            room = max(1, most // _MEANWHILE)

    query = f"{training.query(reading.request.rebuild)} AND {condition}"
    try:
        await copy_rows(work, query, reading.through, reading.window_start, on_rows=add)
    finally:
        if taking is not None:
            await taking
    return assembler.columns()


def window_start_of(settings: Settings, request: RunRequest) -> datetime:
    """Returns the start of a run's window.

    It is as the request says; without days_back a rebuild reads the days of the settings, and an
    incremental run all that is due.
    """
    if request.days_back is None and not request.rebuild:
        return training.EVER
    return request.as_of - timedelta(days=request.days_back or settings.days_back)


def due_transitions(interactions: Interactions, request: RunRequest, n_contexts: int) -> Batch:
    """Returns the transitions that are due, from all interactions of some people."""
    hyperparameters = request.hyperparameters
    return prepare(
        interactions,
        n_contexts=n_contexts,
        session_gap=microseconds(hyperparameters.session_gap_seconds),
        settled_before=_instant(request.as_of) - microseconds(hyperparameters.settling),
        min_interactions=request.min_interactions_per_user,
    )


def _instant(moment: datetime) -> int:
    return microseconds((moment - POSTGRES_EPOCH).total_seconds())


def microseconds(seconds: float) -> int:
    """Returns seconds in the unit of an interaction's time."""
    return round(seconds * 1_000_000)
