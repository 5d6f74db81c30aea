"""Moves rollouts on by themselves: the next step of a version, and the first of one that waits."""

from math import inf, nan

import structlog

from recparams.v1 import rollout_pb2 as pb
from recparams_rl.arms import PREVIOUS, RL, Activation
from recparams_rl.evaluation.rollout import Move, StepState, next_move, place_candidate
from recparams_rl.evaluation.sample_ratio import MISMATCH
from recparams_server.contract.vocabulary import ARM_NUMBERS
from recparams_server.settings import Settings
from recparams_server.store import activations, models, tasks
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import ModelError

log = structlog.get_logger()


async def decide_move(
    connection: Connection, settings: Settings, current: Activation, found: pb.GetExperimentResponse
) -> Move:
    """Decides whether the version being rolled out is taken back, stays or takes a step.

    Args:
        connection: to the database.
        settings: the rules of rollouts.
        current: what is served.
        found: the comparison of its arms.
    """
    seconds = await activations.seconds_since(connection, current.id)
    return next_move(step_state(current, seconds, found), settings.delivery_rules())


def step_state(current: Activation, seconds: float, found: pb.GetExperimentResponse) -> StepState:
    """Returns the state of a step: against the version before, or the rules where it is them."""
    users = {arm.arm: arm.step_users for arm in found.arms}
    before = next(
        (one for one in found.differences if one.other == ARM_NUMBERS[PREVIOUS]),
        found.differences[0],
    )
    people = min(users[ARM_NUMBERS[RL]], users[before.other])
    return StepState(
        percent=current.split.percent,
        seconds=seconds,
        people=people,
        worse=any(one.verdict == pb.VERDICT_WORSE for one in found.differences),
        mismatch=found.sample_ratio_p_value < MISMATCH,
        difference=before.difference if people else nan,
        low=before.low if before.HasField("low") else -inf,
    )


async def take_step(
    connection: Connection, settings: Settings, current: Activation, move: Move
) -> None:
    """Takes the next step, if what is served is still what the decision was about."""
    async with connection.transaction():
        if (await activations.lock(connection)).id != current.id:
            return
        reason = f"next step: {move.reason}"
        holdback = settings.holdback_percent
        await activations.promote(connection, current.version, move.percent, holdback, reason)
    log.info("rollout moved on", version=current.version, percent=move.percent, reason=move.reason)


async def start_waiting(connection: Connection, settings: Settings) -> None:
    """Starts the version that waits for its turn, if there is one and its turn has come."""
    if await tasks.waiting_version(connection) is None:
        return
    try:
        async with connection.transaction():
            current = await activations.lock(connection)
            waiting = await tasks.waiting_version(connection)
            if waiting is None:
                return
            ramp = await activations.ramp_of(connection, current)
            placement = place_candidate((), "undecided", ramp, settings.delivery_rules())
            if not placement.percent:
                return
            reason = f"waited since training run {waiting['id']}"
            plan = await activations.promote(
                connection,
                waiting["version"],
                placement.percent,
                settings.holdback_percent,
                reason,
            )
            await models.load_plan(connection, plan, settings.serving_space())
            await tasks.end_waiting(connection, waiting["id"], placement.outcome, placement.reason)
    except ModelError as failure:
        log.error("the version that waits cannot be served", error=str(failure))
        return
    log.info("rollout started", version=plan.version, percent=plan.split.percent)
