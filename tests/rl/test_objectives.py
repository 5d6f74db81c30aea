"""Objectives: kept apart, and weighed exactly."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recparams_rl.action import ACTIONS
from recparams_rl.objectives import OBJECTIVES, Objectives, components, weighted_reward

weights = st.floats(-5, 5, width=32)
engagements = hnp.arrays(np.float32, st.integers(0, 30), elements=st.floats(-2, 4, width=32))


@given(engagements, st.randoms(use_true_random=False), weights, weights, weights)
def test_the_reward_is_the_weighted_sum_of_the_components(
    engagement: np.ndarray, draw: object, first: float, second: float, third: float
) -> None:
    action = np.array([draw.randrange(27) for _ in engagement], dtype=np.uint8)  # type: ignore[attr-defined]
    kept = components(engagement, action)
    assert kept.shape == (len(engagement), len(OBJECTIVES))
    reward = weighted_reward(Objectives(first, second, third), engagement, action)
    assert reward.dtype == np.float32
    np.testing.assert_allclose(reward, kept @ np.array((first, second, third)), atol=1e-4)


@given(engagements)
def test_by_default_the_reward_is_that_of_the_reactions_to_the_bit(engagement: np.ndarray) -> None:
    action = (np.arange(len(engagement)) % 27).astype(np.uint8)
    assert np.array_equal(weighted_reward(Objectives(), engagement, action), engagement)


def test_levels_of_every_action() -> None:
    kept = components(np.zeros(27, dtype=np.float32), np.arange(27, dtype=np.uint8))
    for action, (_, diversity, novelty) in zip(ACTIONS, kept, strict=True):
        assert diversity == {"focused": 0, "balanced": 0.5, "diverse": 1}[action.diversity]
        assert novelty == {"familiar": 0, "mixed": 0.5, "exploratory": 1}[action.novelty]


@pytest.mark.parametrize("bad", [nan, inf, -inf])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_are_finite(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        Objectives(**{name: bad})
