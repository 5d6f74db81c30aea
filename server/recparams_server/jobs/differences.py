"""Where two versions choose differently, on the interactions of a period, as a message."""

from dataclasses import asdict
from typing import BinaryIO

import asyncpg
import numpy as np

from recparams.v1 import models_pb2 as pb
from recparams_rl.arms import RULES_VERSION
from recparams_rl.evaluation.policy_changes import PolicyChange, Seen, policy_change
from recparams_rl.policy import Policy, rule_based_policy
from recparams_rl.state import TRAITS, StateSpace
from recparams_server.contract.vocabulary import ACTION_MESSAGES
from recparams_server.jobs.requests import DifferenceRequest
from recparams_server.settings import Settings
from recparams_server.store import models
from recparams_server.store.columns import INTERACTIONS, Collector, Rows, StateEncoder, copy_rows
from recparams_server.store.database import Connection, database_url

MOST_CHANGES = 20
_QUERY = f"""
SELECT {INTERACTIONS.select_list} FROM interactions AS i
WHERE i.occurred_at >= $1 AND i.occurred_at < $2
"""  # noqa: S608 - constant column names
_COLUMNS = {"state": np.int32, "user": np.int64, **dict.fromkeys(TRAITS, np.float32)}


async def diff_versions(settings: Settings, request: DifferenceRequest, output: BinaryIO) -> int:
    """Writes a serialized DiffModelsResponse; returns the exit code."""
    space = settings.serving_space()
    connection = await asyncpg.connect(database_url(settings))
    try:
        before, after = [
            await _policy(connection, version, space)
            for version in (request.version, request.other_version)
        ]
        seen, unknown = await _read(connection, space, request)
    finally:
        await connection.close()
    change = policy_change(space, seen, before, after)
    response = _message(change)
    response.version, response.other_version = request.version, request.other_version
    response.period_start.FromDatetime(request.start)
    response.period_end.FromDatetime(request.end)
    response.unknown_state = unknown
    response.states = space.n_states
    output.write(response.SerializeToString())
    return 0


async def _policy(connection: Connection, version: int, space: StateSpace) -> Policy:
    if version == RULES_VERSION:
        return rule_based_policy(space, 0.0)
    return await models.load_policy(connection, version, space)


async def _read(
    connection: Connection, space: StateSpace, request: DifferenceRequest
) -> tuple[Seen, int]:
    """Returns the interactions whose state is known, and the number of the others."""
    encode = StateEncoder(space)
    collected = Collector(**_COLUMNS)
    unknown = 0

    async def add(rows: Rows) -> None:
        nonlocal unknown
        state = encode(rows)
        known = state >= 0
        unknown += int(np.count_nonzero(~known))
        collected.add(state=state[known], **{name: rows[name][known] for name in ("user", *TRAITS)})

    await copy_rows(connection, _QUERY, request.start, request.end, on_rows=add)
    columns = {name: collected.column(name) for name in _COLUMNS}
    traits = np.stack([columns[trait] for trait in TRAITS], axis=1)
    return Seen(columns["state"], columns["user"], traits), unknown


def _message(change: PolicyChange) -> pb.DiffModelsResponse:
    return pb.DiffModelsResponse(
        **asdict(change.counts),
        changed_states=change.changed_states,
        segments=[
            pb.ModelDiffSegment(dimension=one.dimension, value=one.value, **asdict(one.counts))
            for one in change.segments
        ],
        changes=[
            pb.ActionChange(
                before=ACTION_MESSAGES[one.before],
                after=ACTION_MESSAGES[one.after],
                interactions=one.interactions,
                people=one.people,
            )
            for one in change.replacements[:MOST_CHANGES]
        ],
    )
