"""Tables with draws, at random."""

from dataclasses import replace

import numpy as np

from recparams_rl.action import N_ACTIONS
from recparams_rl.draws import Draws
from recparams_rl.policy import GreedyTable
from recparams_rl.state import StateSpace


def with_draws(table: GreedyTable, seed: int, bins: int = 2) -> GreedyTable:
    """Returns a table with draws of a few actions in each state of a coarser space."""
    space: StateSpace = replace(table.space, bins=bins, cuts=())
    generator = np.random.default_rng(seed)
    greedy = generator.integers(N_ACTIONS, size=space.n_states)
    others = generator.integers(N_ACTIONS, size=(space.n_states, 4))
    which = generator.integers(8, size=(space.n_states, 24))
    drawn = np.take_along_axis(others, which % 4, axis=1)
    drawn = np.where(which < 4, drawn, greedy[:, None]).astype(np.uint8)
    return replace(table, draws=Draws.of(space, table.space, drawn, greedy))
