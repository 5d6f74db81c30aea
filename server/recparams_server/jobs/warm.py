"""`python -m recparams_server.jobs.warm`: compiles what training needs into numba's cache.

An image is built with it, so that the first training of a container does not begin by compiling.
"""

import contextlib

import numpy as np

from recparams_rl.learners.registry import LEARNERS
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import TRAITS, StateSpace
from recparams_rl.transitions import Interactions, prepare


def warm() -> None:
    """Has every learner learn one interaction."""
    for algorithm in LEARNERS:
        # Those of an extra that is not installed compile nothing.
        with contextlib.suppress(ImportError):
            learn_one(algorithm)


def learn_one(algorithm: str) -> None:
    """Has a learner learn one interaction, of the types that a training run reads.

    Raises ImportError if it belongs to an extra that is not installed.
    """
    one = Interactions(
        id=np.ones(1, dtype=np.int64),
        user=np.ones(1, dtype=np.int64),
        time=np.zeros(1, dtype=np.int64),
        state=np.zeros(1, dtype=np.int32),
        action=np.zeros(1, dtype=np.uint8),
        reward=np.zeros(1, dtype=np.float32),
        traits=np.full((1, len(TRAITS)), 50, dtype=np.float32),
    )
    space = StateSpace(bins=1)
    batch = prepare(
        one, n_contexts=space.n_contexts, session_gap=1, settled_before=1, min_interactions=1
    )
    kind = LEARNERS[algorithm]
    # On the bins of serving, it would take a second more to publish, by the same calls.
    learner = kind(space, kind.Settings(), smoothing=Smoothing(serving_bins=0))
    learner.learn(batch.transitions)
    learner.publish()


if __name__ == "__main__":
    warm()
