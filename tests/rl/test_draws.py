"""Draws: shares, lookups one by one and all at once, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS
from recparams_rl.draws import N_SAMPLES, Draws, rounded
from recparams_rl.packing import pack, unpack
from recparams_rl.policy import GreedyTable
from recparams_rl.state import StateSpace, nearest_states, serving_space

SPACE = StateSpace(2, ("music",), ("calm", "sad"), ("night", "morning", "evening"))
SERVING = serving_space(SPACE, 3)


def drawn(seed: int, n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Draws of few actions in each state of `SPACE`, and greedy actions."""
    rng = np.random.default_rng(seed)
    base = rng.integers(N_ACTIONS - 3, size=(SPACE.n_states, 1))
    actions = (base + rng.integers(3, size=(SPACE.n_states, n))).astype(np.uint8)
    return actions, (base[:, 0] + rng.integers(3, size=SPACE.n_states)).astype(np.uint8)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 20), st.integers(1, 30))
def test_shares_are_those_of_the_draws_and_of_as_many_greedy_ones(seed: int, n: int) -> None:
    actions, usual = drawn(seed, n)
    draws = Draws.of(SPACE, SERVING, actions, usual)
    greedy = np.random.default_rng(seed).integers(N_ACTIONS, size=SERVING.n_states)
    states = np.arange(SERVING.n_states)
    own = nearest_states(SPACE, SERVING)
    expected = np.zeros((SERVING.n_states, N_ACTIONS))
    for state, learned in enumerate(own):
        for action in actions[learned]:
            # What is greedy for the draws is the finer table's own action.
            taken = greedy[state] if action == usual[learned] else action
            expected[state, taken] += 1 / (2 * n)
        expected[state, greedy[state]] += 0.5
    np.testing.assert_allclose(draws.dist(states, greedy), expected, atol=1e-12)


def test_where_all_draws_are_greedy_nothing_is_kept() -> None:
    greedy = np.full(SPACE.n_states, 3, dtype=np.uint8)
    draws = Draws.of(SPACE, SERVING, np.repeat(greedy[:, None], 4, axis=1), greedy)
    states = np.arange(SERVING.n_states)
    served = np.full(SERVING.n_states, 5)
    assert not draws.actions
    assert (draws.dist(states, served)[:, 5] == 1.0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=N_ACTIONS, max_size=N_ACTIONS).filter(any))
def test_rounding_is_off_by_less_than_one_draw(weights: list[float]) -> None:
    probabilities = np.array([weights]) / sum(weights)
    found = rounded(probabilities)
    assert found.shape == (1, N_SAMPLES)
    counts = np.bincount(found[0], minlength=N_ACTIONS)
    assert (np.abs(counts - N_SAMPLES * probabilities[0]) < 1.0 + 1e-9).all()


def table() -> GreedyTable:
    draws = Draws.of(SPACE, SERVING, *drawn(1))
    n = SERVING.n_states
    return GreedyTable(SERVING, bytes(n), bytes(n), 0.02, draws)


def test_a_table_is_stored_with_its_draws() -> None:
    policy = table()
    again = GreedyTable.from_arrays(SERVING, 0.02, unpack(pack(policy.arrays())))
    states = np.arange(SERVING.n_states)
    assert again == policy
    assert (again.exploring_dist(states) == policy.exploring_dist(states)).all()
    assert (policy.action_dist(states, np.zeros((0, 5)))[:, 0] == 1.0).all()
    dist = policy.exploring_dist(states)
    np.testing.assert_allclose(dist.sum(axis=1), 1.0)
    assert (dist >= 0.02 / N_ACTIONS - 1e-15).all()
    assert (replace(policy, draws=None).exploring_dist(states)[:, 0] > 0.98).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"counts": b"\0"}, "draws are of 1 states"),
        ({"n": 0}, "more draws than there are"),
        ({"n": 1}, "more draws than there are"),
        ({"actions": b"\0"}, "not have as many actions as they count"),
        ({"cells": np.full(SERVING.n_cells, SPACE.n_cells, np.int32)}, "cells that do not exist"),
        ({"cells": np.full(SERVING.n_cells, -1, np.int32)}, "cells that do not exist"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    draws = Draws.of(SPACE, SERVING, *drawn(1))
    with pytest.raises(ValueError, match=message):
        replace(draws, **wrong)
    with pytest.raises(ValueError, match="an action that does not exist"):
        replace(draws, actions=b"\x1b" * len(draws.actions))
