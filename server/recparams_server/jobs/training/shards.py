"""Shards: ranges of personality cells that workers read and learn independently.

The worker of a shard reads everything of everybody who has an interaction in it, because what is
due of a person depends on all of theirs, and learns what lies in its cells. Each person is counted
by the shard of their lowest cell.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.comparison import Log
from recparams_rl.learners.registry import LEARNERS
from recparams_rl.state import NO_CELL, TRAITS, StateSpace
from recparams_rl.transitions import Batch, Due, Transitions
from recparams_server.jobs.training.engine import Work
from recparams_server.jobs.training.holdout import held_out, holdout_log
from recparams_server.jobs.training.reading import Columns, Reading, due_transitions, read
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.database import Connection


@dataclass(frozen=True)
class Shard:
    """The cells from `low` up to but not `high`; the lowest is NO_CELL."""

    low: int
    high: int

    def states(self, space: StateSpace) -> slice:
        """Returns the rows of a table that are of these cells."""
        return slice(max(self.low, 0) * space.n_contexts, self.high * space.n_contexts)


@dataclass(frozen=True)
class Part:
    """Transitions that are due in a shard, with what evaluation needs.

    Attributes:
        transitions: those in its cells, sorted by (cell, time, id).
        log: the same as a log; propensities may be NaN.
        ids, time: of their interactions, int64 (n,).
    """

    transitions: Transitions
    log: Log
    ids: NDArray[np.int64]
    time: NDArray[np.int64]


@dataclass(frozen=True)
class Counts(Due):
    """Counts of the people of a shard.

    Attributes:
        reward_sum: of the transitions of the shard.
        time: of their interactions, int64 (n,).
    """

    reward_sum: float
    time: NDArray[np.int64]


def cell_expression(space: StateSpace) -> str:
    """Returns SQL for the cell of an interaction `i`, as `StateSpace.cells`; NO_CELL if unknown."""
    bins = [
        f"least(floor(i.{trait}::float8 / (100.0::float8 / {space.bins}))::int, {space.bins - 1})"
        for trait in TRAITS
    ]
    cell = bins[0]
    for one in bins[1:]:
        cell = f"({cell}) * {space.bins} + {one}"
    # LEAST passes over what is NULL.
    unknown = " OR ".join(f"i.{trait} IS NULL" for trait in TRAITS)
    return f"CASE WHEN {unknown} THEN {NO_CELL} ELSE {cell} END"


async def interactions_by_cell(
    work: Connection, space: StateSpace, reading: Reading
) -> dict[int, int]:
    """Returns the number of interactions by cell."""
    select = f"{cell_expression(space)} AS cell, count(*) AS n"
    query = f"{training.query(reading.request.rebuild, select)} GROUP BY cell"
    rows = await work.fetch(query, reading.through, reading.window_start)
    return {int(row["cell"]): int(row["n"]) for row in rows}


def split_cells(weights: Mapping[int, int], n_cells: int, parts: int) -> list[Shard]:
    """Returns up to `parts` shards of similar weight, which cover all cells and NO_CELL."""
    cells = sorted(weights)
    total = np.cumsum([weights[cell] for cell in cells])
    wanted = np.linspace(0, total[-1] if len(total) else 0, parts + 1)[1:-1]
    cuts = [cells[int(np.searchsorted(total, one))] for one in wanted] if cells else []
    bounds = sorted({NO_CELL, *(cut for cut in cuts if cut > NO_CELL), n_cells})
    return [Shard(low, high) for low, high in pairwise(bounds)]


def shard_condition(space: StateSpace, reading: Reading, shard: Shard) -> str:
    """Returns SQL that is true of an interaction `i` whose person has one in the shard."""
    cell = cell_expression(space)
    people = training.query(reading.request.rebuild, "i.user_key")
    return f"i.user_key IN ({people} AND {cell} >= {shard.low} AND {cell} < {shard.high})"


async def read_shard(
    work: Connection, settings: Settings, reading: Reading, shard: Shard
) -> tuple[Part, Counts]:
    """Reads a shard from the database; returns what is due in it, and counts of its people."""
    columns = await read(
        work,
        settings,
        replace(reading, traits=True),
        lambda _: None,
        shard_condition(settings.space(), reading, shard),
    )
    return await asyncio.to_thread(part_of, settings, reading, shard, columns)


def part_of(
    settings: Settings, reading: Reading, shard: Shard, columns: Columns
) -> tuple[Part, Counts]:
    """Returns what is due in a shard, and counts of its people, from all their interactions.

    Args:
        settings: the state space.
        reading: the selection that the run reads.
        shard: the shard.
        columns: the interactions, with their scores.
    """
    space = settings.space()
    interactions = columns.interactions
    assert interactions.traits is not None  # noqa: S101 - read by all that call this
    cells = space.cells_if_known(interactions.traits)
    if not reading.traits:
        columns = replace(columns, interactions=replace(interactions, traits=None))
    batch = due_transitions(columns.interactions, reading.request, space.n_contexts)
    learned = batch.transitions.state // space.n_contexts
    within = (learned >= shard.low) & (learned < shard.high)
    rows = batch.rows[within]
    part = Part(
        batch.transitions[within],
        holdout_log(columns, rows),
        columns.interactions.id[rows],
        columns.interactions.time[rows],
    )
    return part, _counts(batch, part, shard, columns, cells, reading, space)


def _counts(
    batch: Batch,
    part: Part,
    shard: Shard,
    columns: Columns,
    cells: NDArray[np.int64],
    reading: Reading,
    space: StateSpace,
) -> Counts:
    user = columns.interactions.user
    people, person = np.unique(user, return_inverse=True)
    lowest = np.full(len(people), np.iinfo(np.int64).max)
    np.minimum.at(lowest, person, cells)
    own_people = (lowest >= shard.low) & (lowest < shard.high)
    if own_people.all():
        own = batch
    else:
        # What is due of a person does not depend on anybody else.
        interactions = columns.interactions[own_people[person]]
        own = due_transitions(interactions, reading.request, space.n_contexts)
    return Counts(
        **own.due(),
        reward_sum=float(part.transitions.reward.sum(dtype=np.float64)),
        time=part.time,
    )


def learn_block(
    settings: Settings,
    reading: Reading,
    shard: Shard,
    part: Part,
    split: int | None,
    tail: bool,
    block: Mapping[str, NDArray[Any]],
) -> dict[str, NDArray[Any]]:
    """Trains a shard's rows of a learner's arrays and returns them.

    Args:
        settings: the state space.
        reading: the selection that the run reads.
        shard: the cells.
        part: the transitions.
        split: as `split_time` returns it.
        tail: True to learn the part that was held out, False for the rest.
        block: the rows of the arrays before, by name.
    """
    space = settings.space()
    learner = LEARNERS[reading.request.algorithm](space, reading.request.hyperparameters)
    arrays = learner.arrays()
    write_shard_rows(space, arrays, shard, block)
    chosen = held_out(part.time, split)
    learner.learn(part.transitions[chosen if tail else ~chosen])
    return shard_rows(space, learner.arrays(), shard)


def shard_rows(
    space: StateSpace, arrays: Mapping[str, NDArray[Any]], shard: Shard
) -> dict[str, NDArray[Any]]:
    """Returns a shard's rows, copied, of arrays whose last axis but one is the state."""
    rows = shard.states(space)
    return {name: array[..., rows, :].copy() for name, array in arrays.items()}


def write_shard_rows(
    space: StateSpace,
    arrays: Mapping[str, NDArray[Any]],
    shard: Shard,
    block: Mapping[str, NDArray[Any]],
) -> None:
    """Writes a shard's rows into arrays."""
    rows = shard.states(space)
    for name, array in arrays.items():
        array[..., rows, :] = block[name]


def merge_shards(counts: Sequence[Counts], logs: Sequence[Log], ids: Sequence[Any]) -> Work:
    """Merges the counts of all shards, in order, with the held-out rows of each."""
    transitions = sum(len(one.time) for one in counts)
    return Work(
        **Due.joined(counts).due(),
        transitions=transitions,
        average_reward=sum(one.reward_sum for one in counts) / max(1, transitions),
        log=_joined(logs),
        ids=np.concatenate(ids),
    )


def _joined(logs: Sequence[Log]) -> Log:
    columns: dict[str, Any] = {
        name: None
        if getattr(logs[0], name) is None
        else np.concatenate([getattr(log, name) for log in logs])
        for name in vars(logs[0])
    }
    return Log(**columns)
