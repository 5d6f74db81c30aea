"""The learner of a run."""

from recparams_rl.learners.base import Learner
from recparams_rl.learners.registry import LEARNERS
from recparams_server.jobs.requests import RunRequest
from recparams_server.settings import Settings
from recparams_server.store import models
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import CorruptModelError


async def learner_for(
    work: Connection, settings: Settings, request: RunRequest, parent: int | None
) -> Learner:
    """Returns the learner to train: a new one, or one that goes on from the parent version.

    Raises as `models.load_learner`, CorruptModelError where its arrays do not fit, and ValueError
    where the version's algorithm is another one.
    """
    arrays = None
    if parent is not None:
        algorithm, arrays = await models.load_learner(work, parent, settings.space())
        if algorithm != request.algorithm:
            raise ValueError(
                f"version {parent} was learned by {algorithm}, not {request.algorithm}: train with "
                "mode TRAINING_MODE_REBUILD"
            )
    try:
        return LEARNERS[request.algorithm](
            settings.space(), request.hyperparameters, smoothing=settings.smoothing(), arrays=arrays
        )
    except ValueError as failure:
        if parent is None:
            raise
        raise CorruptModelError(f"model version {parent}: {failure}") from None
