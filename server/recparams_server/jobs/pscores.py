"""Propensities that estimates can rest on."""

import numpy as np
from numpy.typing import NDArray

from recparams_rl.evaluation.overlap import bounded_pscore, least_pscore
from recparams_server.settings import Settings
from recparams_server.store import model_rows
from recparams_server.store.database import Connection


async def usable_pscore(
    connection: Connection, settings: Settings, pscore: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Returns propensities with those too small for what is served as NaN, float32 (n,).

    Args:
        connection: to the database, which knows how little its versions explore.
        settings: the exploration that is served.
        pscore: propensities as they were stored, float32 (n,), NaN where not known.
    """
    epsilon = settings.served_exploration().epsilon
    if epsilon is None:
        of_versions = await model_rows.least_exploration(connection)
        epsilon = min(settings.exploration_rate, of_versions or 1.0)
    return bounded_pscore(pscore, least_pscore(epsilon))
