"""The evaluation of logged interactions, and of other policies on them, as a message."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, BinaryIO

import asyncpg
import numpy as np
from numpy.typing import NDArray

from recparams.v1 import evaluation_pb2
from recparams.v1 import training_pb2 as pb
from recparams_rl.arms import RULES_VERSION
from recparams_rl.evaluation.comparison import Log, Target, action_shares, compare
from recparams_rl.evaluation.performance import logged_performance
from recparams_rl.numerics import unique_inverse
from recparams_rl.objectives import OBJECTIVES, components, weighted_reward
from recparams_rl.policy import Policy, rule_based_policy
from recparams_rl.reward import reaction_flags, rewards
from recparams_rl.state import TRAITS, StateSpace
from recparams_rl.transitions import TrainedThrough
from recparams_server.contract.vocabulary import ARM_NAMES
from recparams_server.jobs.pscores import usable_pscore
from recparams_server.jobs.reports import pair_message, policy_messages
from recparams_server.jobs.requests import ACTIVE, RANDOM, RULES, EvaluationRequest
from recparams_server.settings import Settings
from recparams_server.store import models
from recparams_server.store.activations import current_activation
from recparams_server.store.columns import (
    POSTGRES_EPOCH,
    SERVED,
    Collector,
    Rows,
    StateEncoder,
    copy_rows,
)
from recparams_server.store.database import Connection, database_url

_QUERY = f"""
SELECT {SERVED.select_list} FROM interactions AS i
WHERE i.occurred_at >= $1 AND i.occurred_at < $2
"""  # noqa: S608 - constant column names
_COLUMNS = {
    "id": np.int64,
    "user": np.int64,
    "time": np.int64,
    "state": np.int32,
    "action": np.uint8,
    "mask": np.uint8,
    "engagement": np.float32,
    "pscore": np.float32,
    "arm": np.int16,
    **dict.fromkeys(TRAITS, np.float32),
}
_DAY = 86_400_000_000
_ARMS = 1 << 8
_SEED = 1
"""Of the bootstrap: the same question has the same answer."""

Columns = dict[str, NDArray[Any]]


async def evaluate(settings: Settings, request: EvaluationRequest, output: BinaryIO) -> int:
    """Writes a serialized EvaluateResponse; returns the exit code."""
    connection = await asyncpg.connect(database_url(settings))
    try:
        columns = await _read(connection, settings, request)
        columns["pscore"] = await usable_pscore(connection, settings, columns["pscore"])
        targets = [
            target async for target in _targets(connection, settings.serving_space(), request)
        ]
    finally:
        await connection.close()
    output.write(_response(settings, request, columns, targets).SerializeToString())
    return 0


async def _read(connection: Connection, settings: Settings, request: EvaluationRequest) -> Columns:
    weights = settings.reward_weights()
    encode = StateEncoder(settings.serving_space())
    collected = Collector(**_COLUMNS)

    async def add(rows: Rows) -> None:
        mask = rows["reactions"].astype(np.int64)
        collected.add(
            mask=mask,
            state=encode(rows),
            engagement=rewards(weights, mask, rows["completion_rate"], rows["mood_change"]),
            pscore=rows["propensity"],
            **{name: rows[name] for name in ("id", "user", "time", "action", "arm", *TRAITS)},
        )

    await copy_rows(connection, _QUERY, request.start, request.end, on_rows=add, layout=SERVED)
    return {name: collected.column(name) for name in _COLUMNS}


@dataclass(frozen=True)
class _Evaluated:
    """A policy, and the interactions it was trained on; None where they are not known."""

    target: Target
    trained: TrainedThrough | None


async def _targets(
    connection: Connection, space: StateSpace, request: EvaluationRequest
) -> AsyncIterator[_Evaluated]:
    active = (await current_activation(connection)).version
    seen = set()
    for wanted in request.policies:
        version = active if wanted == ACTIVE else wanted
        if version in (RULES, RULES_VERSION):
            policy: Policy | None = rule_based_policy(space, 0.0)
            name, number = RULES, RULES_VERSION
        elif version == RANDOM:
            policy, name, number = None, RANDOM, RULES_VERSION
        else:
            number = int(version)
            policy = await models.load_policy(connection, number, space)
            name = f"version {number} (active)" if number == active else f"version {number}"
        if name not in seen:
            seen.add(name)
            trained = await models.load_trained(connection, number)
            yield _Evaluated(Target(name, number, policy), trained)


def _response(
    settings: Settings, request: EvaluationRequest, columns: Columns, evaluated: list[_Evaluated]
) -> pb.EvaluateResponse:
    space, objectives = settings.serving_space(), settings.objectives()
    reward = weighted_reward(objectives, columns["engagement"], columns["action"])
    performance = logged_performance(columns["user"], columns["mask"], reward, columns["pscore"])
    known_state = columns["state"] >= 0
    usable = known_state & ~np.isnan(columns["pscore"])
    covered = {
        one.target.name: None
        if one.trained is None
        else one.trained.covers(columns["user"], columns["id"])
        for one in evaluated
    }
    trained = np.zeros(len(reward), dtype=np.bool_)
    if not request.include_trained:
        for rows in covered.values():
            trained |= False if rows is None else rows
    log = _log(columns, usable & ~trained)
    comparison = compare(
        space,
        log,
        [one.target for one in evaluated],
        objectives,
        confidence=request.confidence,
        rng=np.random.default_rng(_SEED),
        by_segment=request.by_segment,
    )
    logged = components(columns["engagement"], columns["action"])
    response = pb.EvaluateResponse(
        **asdict(performance),
        evaluated=len(log),
        trained_excluded=int(np.count_nonzero(usable & trained)),
        unknown_state=int(np.count_nonzero(~known_state)),
        policies=policy_messages(
            comparison,
            {
                name: None if rows is None else int(np.count_nonzero(rows))
                for name, rows in covered.items()
            },
        ),
        differences=map(pair_message, comparison.pairs),
        daily=_daily(columns, reward),
        coverage=_coverage(space, columns["state"][known_state]),
        logged_action_shares=action_shares(columns["action"]),
        logged_objectives={
            name: float(column.mean(dtype=np.float64)) if len(column) else 0.0
            for name, column in zip(OBJECTIVES, logged.T, strict=True)
        },
    )
    response.period_start.FromDatetime(request.start)
    response.period_end.FromDatetime(request.end)
    return response


def _log(columns: Columns, rows: NDArray[np.bool_]) -> Log:
    return Log(
        state=columns["state"][rows],
        action=columns["action"][rows],
        engagement=columns["engagement"][rows],
        pscore=columns["pscore"][rows],
        person=columns["user"][rows],
        traits=np.stack([columns[trait][rows] for trait in TRAITS], axis=1),
    )


def _daily(columns: Columns, reward: NDArray[np.float32]) -> Iterator[evaluation_pb2.DailyReward]:
    """Yields the rewards of each day and arm."""
    groups, group = unique_inverse(columns["time"] // _DAY * _ARMS + columns["arm"])
    counts = np.bincount(group, minlength=len(groups))
    total = np.bincount(group, weights=reward, minlength=len(groups))
    liked = reaction_flags(columns["mask"], "like")
    likes = np.bincount(group, weights=liked, minlength=len(groups))
    days, arms = np.divmod(groups, _ARMS)
    for day, arm, n, reward_sum, like_sum in zip(days, arms, counts, total, likes, strict=True):
        yield evaluation_pb2.DailyReward(
            day=(POSTGRES_EPOCH + timedelta(days=int(day))).date().isoformat(),
            arm=ARM_NAMES.get(int(arm), "unknown"),
            interactions=int(n),
            average_reward=float(reward_sum / n),
            like_rate=float(like_sum / n),
        )


def _coverage(
    space: StateSpace, state: NDArray[np.int32]
) -> Iterator[evaluation_pb2.ContextCoverage]:
    """Yields the coverage of each context that occurs."""
    interactions = np.bincount(state % space.n_contexts, minlength=space.n_contexts)
    seen = np.zeros((space.n_cells, space.n_contexts), dtype=np.bool_)
    seen.ravel()[state] = True
    states = seen.sum(axis=0)
    for context in np.flatnonzero(interactions):
        _, names = space.decode(int(context))
        yield evaluation_pb2.ContextCoverage(
            **asdict(names),
            interactions=int(interactions[context]),
            states=int(states[context]),
        )
