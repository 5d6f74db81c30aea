"""The comparison of the arms of an experiment so far, as a message."""

from typing import Any, BinaryIO

import asyncpg
import numpy as np
from numpy.typing import NDArray

from recparams.v1 import rollout_pb2 as pb
from recparams_rl.arms import RL, Activation
from recparams_rl.evaluation.sample_ratio import sample_ratio_p_value
from recparams_rl.evaluation.sequential import ArmTotals, difference
from recparams_server.contract.vocabulary import ARM_NUMBERS
from recparams_server.jobs.served import read_served
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_server.store.activations import experiment
from recparams_server.store.database import database_url


async def compare_arms(settings: Settings, experiment_id: int, output: BinaryIO) -> int:
    """Writes a serialized GetExperimentResponse without its times; returns the exit code."""
    connection = await asyncpg.connect(database_url(settings))
    try:
        plans = await experiment(connection, experiment_id)
        columns = await read_served(
            connection, settings, [plan.id for plan in plans], training.EVER
        )
    finally:
        await connection.close()
    response = _response(settings, plans, columns)
    response.experiment_id = experiment_id
    output.write(response.SerializeToString())
    return 0


def _weights(
    plans: list[Activation], name: str, activation: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the inverse of the arm's share when each interaction was decided, float64 (n,).

    Where the ramp moved, every arm then has its people spread alike over time: a good week does not
    count for the arm that happened to be large in it.
    """
    inverse = [1.0 / plan.arms()[name].share for plan in plans]
    ids = np.array([plan.id for plan in plans])
    return np.array(inverse)[np.searchsorted(ids, activation)]


def _response(
    settings: Settings, plans: list[Activation], columns: dict[str, Any]
) -> pb.GetExperimentResponse:
    last = plans[-1]
    # All plans of an experiment have the same arms.
    versions = {name: arm.version for name, arm in last.arms().items()}
    totals, step_users = {}, {}
    for name in versions:
        rows = columns["arm"] == ARM_NUMBERS[name]
        at_step = rows & (columns["activation"] == last.id)
        step_users[name] = len(np.unique(columns["user"][at_step]))
        totals[name] = ArmTotals.of(
            columns["user"][rows],
            columns["reward"][rows],
            columns["like"][rows],
            weight=_weights(plans, name, columns["activation"][rows]),
        )
    others = [name for name in totals if name != RL]
    alpha = settings.experiment_alpha
    differences = [
        difference(
            totals[RL],
            totals[name],
            # Together the comparisons err as seldom as one would.
            alpha=alpha / len(others),
            burn_in=settings.experiment_burn_in,
        )
        for name in others
    ]
    return pb.GetExperimentResponse(
        version=last.version,
        baseline_version=last.baseline,
        arms=[
            pb.ArmResult(
                arm=ARM_NUMBERS[name],
                version=versions[name],
                users=arm.persons,
                interactions=arm.interactions,
                average_reward=arm.mean_reward,
                like_rate=arm.like_rate,
                step_users=step_users[name],
            )
            for name, arm in totals.items()
        ],
        differences=[
            pb.ArmDifference(
                other=ARM_NUMBERS[name],
                difference=one.value,
                low=one.low if one.started else None,
                high=one.high if one.started else None,
                verdict=pb.Verdict.Value(f"VERDICT_{one.verdict.upper()}"),
            )
            for name, one in zip(others, differences, strict=True)
        ],
        alpha=alpha,
        burn_in_users=settings.experiment_burn_in,
        sample_ratio_p_value=sample_ratio_p_value(
            list(step_users.values()), [last.arms()[name].share for name in step_users]
        ),
    )
