"""A tuning: configurations learned from one part of the log and valued on the other, as messages.

It reads, and writes nothing but what it found: no version, no watermark, no setting.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from math import isnan
from typing import BinaryIO

import asyncpg
import numpy as np
from numpy.typing import NDArray

from recparams.v1 import tuning_pb2 as pb
from recparams_rl.evaluation.grid import Configuration, grid
from recparams_rl.evaluation.tuning import Later, Tuned, Tuning, tune
from recparams_rl.exploration import OFF, POSTERIOR, Exploration
from recparams_rl.policy import Policy
from recparams_rl.transitions import Transitions, prepare
from recparams_server.contract.enums import enum_number
from recparams_server.jobs.processes import LENGTH_BYTES, UNDER_WAY
from recparams_server.jobs.pscores import usable_pscore
from recparams_server.jobs.requests import TuningRequest
from recparams_server.jobs.training.holdout import held_out, split_time
from recparams_server.jobs.training.reading import Assembler, Columns, microseconds
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store import tuning as store
from recparams_server.store.columns import POSTGRES_EPOCH, Rows, copy_rows
from recparams_server.store.database import Connection, database_url
from recparams_server.store.locks import TUNING_LOCK, try_lock

MOST_INTERACTIONS = 1_000_000
"""Interactions that are read, about; of more, people are drawn at random."""
LATER_SHARE = 0.5
"""Share of the interactions that configurations are valued on."""
EXPLORES = 0.05
_READ = 0.05
"""Progress when the interactions have been read."""


async def tune_log(settings: Settings, request: TuningRequest, output: BinaryIO) -> int:
    """Writes TuneResponses, each after its length; returns the exit code."""
    connection = await asyncpg.connect(database_url(settings))
    try:
        if not await try_lock(connection, TUNING_LOCK):
            return UNDER_WAY
        _tell(output, pb.TuneResponse(stage="reading"))
        found = await _tuning(connection, settings, request, output)
        await store.put(connection, found)
    finally:
        await connection.close()
    _tell(output, pb.TuneResponse(stage="done", progress=1.0, tuning=found))
    return 0


def _tell(output: BinaryIO, response: pb.TuneResponse) -> None:
    message = response.SerializeToString()
    output.write(len(message).to_bytes(LENGTH_BYTES, "big") + message)
    output.flush()


async def _tuning(
    connection: Connection, settings: Settings, request: TuningRequest, output: BinaryIO
) -> pb.Tuning:
    interactions = await store.count(connection, request.start, request.end)
    columns = await _read(connection, settings, request, interactions)
    pscore = await usable_pscore(connection, settings, columns.pscore)
    tried = await _grid(connection, settings)
    time = columns.interactions.time
    split = split_time(time, LATER_SHARE)
    rows = held_out(time, split)
    read, unknown = len(time), int(np.count_nonzero(rows & np.isnan(pscore)))
    rows &= ~np.isnan(pscore) & (columns.interactions.state >= 0)
    earlier, later = _parts(settings, columns, pscore, split, rows)
    del columns
    done = 0

    def on_policy(one: Configuration, policy: Policy) -> None:  # noqa: ARG001 - it is valued next
        nonlocal done
        progress = _READ + (1.0 - _READ) * done / len(tried)
        _tell(output, pb.TuneResponse(stage=one.name(tried[0]), progress=progress))
        done += 1

    found = await asyncio.to_thread(
        tune,
        settings.space(),
        earlier,
        later,
        tried,
        confidence=request.confidence,
        threads=settings.training_threads,
        on_policy=on_policy,
    )
    message = tuning_message(found)
    message.interactions, message.read, message.unknown_propensity = interactions, read, unknown
    message.period_start.FromDatetime(request.start)
    message.period_end.FromDatetime(request.end)
    if split is not None:
        message.split_at.FromDatetime(POSTGRES_EPOCH + timedelta(microseconds=split))
    message.made_at.FromDatetime(datetime.now(UTC))
    return message


async def _read(
    connection: Connection, settings: Settings, request: TuningRequest, interactions: int
) -> Columns:
    assembler = Assembler(settings, settings.objectives(), traits=True, on_rows=lambda _: None)

    async def add(rows: Rows) -> None:
        assembler.add(rows)

    below = store.people_below(interactions, MOST_INTERACTIONS)
    await copy_rows(connection, store.QUERY, request.start, request.end, below, on_rows=add)
    return assembler.columns()


async def _grid(connection: Connection, settings: Settings) -> tuple[Configuration, ...]:
    """Returns the grid around the settings, with what each setting of exploration is now."""
    learned = settings.hyperparameters()
    scheduled = await training.exploration_rate(connection)
    explorations = {
        "off": OFF,
        "posterior": POSTERIOR,
        "schedule": Exploration(learned.epsilon(0) if scheduled is None else scheduled),
        f"{EXPLORES:g}": Exploration(EXPLORES),
    }
    exploration = settings.exploration
    name = exploration if isinstance(exploration, str) else f"{exploration:g}"
    present = Configuration(
        settings.algorithm,
        learned,
        settings.smoothing(),
        name,
        explorations[name] if isinstance(exploration, str) else Exploration(exploration),
    )
    return grid(present, explorations, deep=find_spec("torch") is not None)


def _parts(
    settings: Settings,
    columns: Columns,
    pscore: NDArray[np.float32],
    split: int | None,
    rows: NDArray[np.bool_],
) -> tuple[Transitions, Later]:
    """Returns what is learned, all before `split`, and some rows, to value policies on."""
    all_of, space = columns.interactions, settings.space()
    batch = prepare(
        all_of,
        n_contexts=space.n_contexts,
        session_gap=microseconds(settings.session_gap_seconds),
        settled_before=np.iinfo(np.int64).min if split is None else split,
        min_interactions=1,
    )
    assert all_of.traits is not None  # noqa: S101 - they are read
    return batch.transitions, Later(
        traits=all_of.traits[rows],
        context=all_of.state[rows] % np.int32(space.n_contexts),
        action=all_of.action[rows],
        reward=all_of.reward[rows],
        pscore=pscore[rows],
        person=all_of.user[rows],
    )


def tuning_message(found: Tuning) -> pb.Tuning:
    """Returns a tuning as the contract has it, without what it does not know of the log."""
    present = found.rows[0].configuration
    return pb.Tuning(
        learned=found.learned,
        valued=found.valued,
        valued_users=found.people,
        confidence=found.confidence,
        critical=found.critical,
        configurations=[_configuration_message(row, present) for row in found.rows],
        chosen=found.chosen,
        outcome=enum_number(pb.TuningOutcome, found.outcome),
    )


def _configuration_message(row: Tuned, present: Configuration) -> pb.TunedConfiguration:
    names = "value", "difference", "low", "high", "p_value"
    figures = {name: getattr(row, name) for name in names}
    return pb.TunedConfiguration(
        name=row.configuration.name(present),
        settings=row.configuration.changes(present),
        verdict=enum_number(pb.TuningVerdict, row.verdict),
        reason=row.reason,
        **{name: figure for name, figure in figures.items() if not isnan(figure)},
    )
