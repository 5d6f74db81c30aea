"""What can be reached in a world by whoever knows it, but not the tastes of each person."""

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray

from recparams_rl.numerics import softmax
from recparams_rl.reward import RewardWeights
from recparams_rl.rules import rule_table
from recparams_simulation.compare.logs import SPACE
from recparams_simulation.compare.measure import HeldOut
from recparams_simulation.people.population import TASTE_SDS, Situations, draw_population
from recparams_simulation.people.simulator import expected_rewards

LIMITS = BY_CELL, BY_PROFILE = "best by cell", "best by profile"

PEOPLE, ALIKE = 100_000, 50
"""People from whom the mean of a cell is taken, and how many are drawn for a state."""

_STATES_TOGETHER = 2_000
_NODES = 3


def best_by_profile(held_out: HeldOut) -> NDArray[np.int64]:
    """Returns the best action by exact scores and context, (n,), for n held-out interactions.

    Means over personal tastes are Gauss-Hermite sums: in one situation a taste is three independent
    normal numbers.
    """
    people, at = held_out.population, held_out.log.at
    nodes, weights = hermegauss(_NODES)
    nodes, weights = nodes * np.hypot(*TASTE_SDS), weights / weights.sum()
    mean = np.zeros_like(held_out.mean)
    for which in product(range(_NODES), repeat=3):
        tastes = np.broadcast_to(nodes[list(which)], people.tastes.shape)
        typical = replace(people, tastes=tastes)
        mean += weights[list(which)].prod() * expected_rewards(typical, at, RewardWeights())
    best: NDArray[np.int64] = mean.argmax(axis=1)
    return best


def best_by_cell(rng: np.random.Generator, held_out: HeldOut) -> NDArray[np.int64]:
    """Returns the best action by state, about, (n,), for n held-out interactions.

    It is that of the mean over `ALIKE` other people of the cell, drawn with replacement, each as
    often as they come in such a mood and for such content; the rules' action where nobody is.
    """
    pool = draw_population(rng, PEOPLE, held_out.population.world)
    cells = SPACE.cells(pool.traits)
    by_cell = np.argsort(cells, kind="stable")
    state, first, back = np.unique(held_out.log.state, return_index=True, return_inverse=True)
    start, end = (
        np.searchsorted(cells[by_cell], state // SPACE.n_contexts, side=side)
        for side in ("left", "right")
    )
    moods = softmax(pool.mood_logits)
    best = rule_table(SPACE)[state].astype(np.int64)
    known = np.flatnonzero(end > start)
    for rows in np.array_split(known, len(known) // _STATES_TOGETHER + 1):
        among = rng.random((len(rows), ALIKE)) * (end - start)[rows, None]
        person = by_cell[start[rows, None] + among.astype(np.int64)].ravel()
        here = held_out.log.at[np.repeat(first[rows], ALIKE)]
        at = Situations(person, here.time, here.content_type, here.mood)
        often = pool.visits_per_week[person] * moods[person, at.mood]
        often *= pool.content_shares[person, at.content_type]
        weighted = expected_rewards(pool, at, RewardWeights()) * often[:, None]
        best[rows] = weighted.reshape(len(rows), ALIKE, -1).sum(axis=1).argmax(axis=1)
    return best[back]
