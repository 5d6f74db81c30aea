"""Models and interactions made up at random, for what needs no meaning in them."""

from dataclasses import asdict, replace

import numpy as np

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.tabular import table_statistics
from recparams_rl.policy import GreedyTable, publish, rule_based_policy
from recparams_rl.smoothing import Smoothing, Visited
from recparams_rl.state import StateSpace, serving_space
from recparams_rl.transitions import Interactions, TrainedThrough
from recparams_server.store.models import NewModel
from recparams_simulation.people.traits import TRAIT_MEANS, TRAIT_SDS

SETTINGS = Hyperparameters()
EPSILON = 0.05
SECOND = 1_000_000

ACTIONS_TRIED = 4
"""In a visited state: mostly one action is served there, and exploration adds a few."""


def random_model(
    rng: np.random.Generator, states: int, space: StateSpace, smoothing: Smoothing
) -> NewModel:
    """A model with so many visited states, `ACTIONS_TRIED` random actions in each."""
    shape = space.n_states, N_ACTIONS
    q, visits = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    rewards = np.zeros(shape, dtype=np.float32)
    visited = rng.choice(space.n_states, states, replace=False)[:, None]
    tried = rng.random((states, N_ACTIONS)).argpartition(ACTIONS_TRIED)[:, :ACTIONS_TRIED]
    q[visited, tried] = rng.normal(0.5, 0.3, tried.shape)
    visits[visited, tried] = 1 + rng.poisson(5.0, tried.shape)
    rewards[visited, tried] = 0.9 * q[visited, tried]
    model = NewModel(
        origin="imported",
        run_id=None,
        parent_version=None,
        algorithm="q_learning",
        space=space,
        hyperparameters=SETTINGS.to_dict(),
        metrics={**asdict(table_statistics(q, visits)), "exploration_rate": EPSILON},
        q=q,
        visits=visits,
        rewards=rewards,
        policy=rule_based_policy(serving_space(space, smoothing.serving_bins), EPSILON),
        objectives={},
        main_line=False,
        trained=TrainedThrough.nothing(),
    )
    return replace(model, policy=published(model, smoothing))


def published(model: NewModel, smoothing: Smoothing) -> GreedyTable:
    """The policy of a model's table."""
    return publish(
        model.space,
        Visited.of(model.q, model.visits, model.rewards),
        learning_rate=SETTINGS.learning_rate,
        epsilon=EPSILON,
        smoothing=smoothing,
    )


def random_interactions(rng: np.random.Generator, n: int, space: StateSpace) -> Interactions:
    """Three weeks of n interactions, distributed as those of benchmarks/database.py.

    Visits of five interactions by a fiftieth as many people, reported up to 5 s late, so that they
    are not quite in the order in which they happened.
    """
    people = max(1, n // 50)
    cells = space.cells(np.clip(rng.normal(TRAIT_MEANS, TRAIT_SDS, (people, 5)), 0.0, 100.0))
    user = np.repeat(rng.integers(people, size=n // 5 + 1), 5)[:n]
    happened = np.arange(n) * (21 * 86400 * SECOND // n) - rng.integers(5 * SECOND, size=n)
    return Interactions(
        id=np.arange(n),
        user=user,
        time=happened,
        state=(cells[user] * space.n_contexts + rng.integers(space.n_contexts, size=n)).astype(
            np.int32
        ),
        action=rng.integers(N_ACTIONS, size=n, dtype=np.uint8),
        reward=rng.normal(0.5, 0.3, n).astype(np.float32),
    )
