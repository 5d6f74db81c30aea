"""`python -m server.worker.warm`: compiles what training needs into numba's cache.

An image is built with it, so that the first training of a container does not begin by compiling.
"""

import numpy as np

from rl import q_learning
from rl.action import N_ACTIONS
from rl.hyperparameters import Hyperparameters
from rl.transitions import Interactions, prepare


def warm() -> None:
    """Learns one interaction, of the types that `server.worker.training` reads."""
    one = Interactions(
        id=np.ones(1, dtype=np.int64),
        user=np.ones(1, dtype=np.int64),
        time=np.zeros(1, dtype=np.int64),
        state=np.zeros(1, dtype=np.int32),
        action=np.zeros(1, dtype=np.uint8),
        reward=np.zeros(1, dtype=np.float32),
    )
    batch = prepare(one, n_contexts=1, session_gap=1, settled_before=1, min_interactions=1)
    q_learning.train(
        np.zeros((1, N_ACTIONS), dtype=np.float32),
        np.zeros((1, N_ACTIONS), dtype=np.int32),
        batch.transitions,
        Hyperparameters(),
        states_per_cell=1,
    )


if __name__ == "__main__":
    warm()
