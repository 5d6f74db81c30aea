"""What becomes of a new version: refused, waiting for its turn, or served."""

from dataclasses import replace

from recparams_rl.evaluation.rollout import Placement, place_candidate
from recparams_rl.policy import Policy
from recparams_server.jobs.training.holdout import Examination
from recparams_server.settings import Settings
from recparams_server.store import activations, models, tasks
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import ModelError

NOTHING_NEW = Placement("no_change", 0.0, "there was nothing new to learn")
STORED = Placement("stored", 0.0, "stored, and served if somebody says so")


async def place(
    work: Connection, settings: Settings, run_id: int, version: int, examination: Examination
) -> Placement:
    """Decides what becomes of a new version and does it, within the caller's transaction.

    Args:
        work: in the transaction that stores the version.
        settings: the rules of rollouts.
        run_id: the run that trained it.
        version: the version.
        examination: of the version.
    """
    current = await activations.lock(work)
    gates, verdict = examination.gates, examination.verdict
    if current.settled != examination.against:
        # It was compared with what is no longer served.
        gates = tuple(gate for gate in gates if gate.name != "improvement")
        verdict = "undecided"
    try:
        policy = await models.load_policy(work, version, settings.serving_space())
    except ModelError as failure:
        return Placement("refused", 0.0, f"refused: {failure}")
    placement = place_candidate(
        () if settings.gates == "report" else gates,
        verdict,
        await activations.ramp_of(work, current),
        settings.delivery_rules(),
    )
    if placement.percent:
        placement = await _serve(work, settings, run_id, version, policy, placement)
    if placement.outcome != "refused":
        await tasks.supersede_waiting(work)
    return placement


async def _serve(
    work: Connection,
    settings: Settings,
    run_id: int,
    version: int,
    policy: Policy,
    placement: Placement,
) -> Placement:
    """Serves a version to a share of the people; it waits if the others could not be served."""
    try:
        async with work.transaction():
            plan = await activations.promote(
                work,
                version,
                placement.percent,
                settings.holdback_percent,
                f"training run {run_id}",
            )
            await models.load_plan(work, plan, settings.serving_space(), {version: policy})
    except ModelError as failure:
        return Placement("waiting", 0.0, f"waits: {failure}")
    return replace(placement, percent=plan.split.percent)
