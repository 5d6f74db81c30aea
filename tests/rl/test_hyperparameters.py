"""Settings of the learner: the seed's defaults, their ranges, and the exploration schedule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.learners.hyperparameters import Hyperparameters


def test_the_seeds_defaults() -> None:
    default = Hyperparameters()
    assert (default.learning_rate, default.discount_factor) == (0.1, 0.95)
    assert (default.exploration_rate, default.min_exploration_rate) == (0.3, 0.05)
    assert default.exploration_decay == 0.995
    assert default.session_gap_seconds == default.settling == 1800.0
    assert Hyperparameters(settling_seconds=0.0).settling == 0.0


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("learning_rate", [1e-9, 1.0], [0.0, -0.1, 1.0000001, math.nan, math.inf]),
        ("discount_factor", [0.0, 0.999], [-0.1, 1.0, math.nan, math.inf]),
        ("exploration_rate", [0.05, 1.0], [-0.1, 1.1, math.nan]),
        ("exploration_decay", [1e-9, 1.0], [0.0, 1.1, math.nan]),
        ("min_exploration_rate", [0.0, 0.3], [-0.1, 0.31, math.nan]),
        ("session_gap_seconds", [1e-6, 86400.0 * 366], [0.0, -1.0, 1e9, math.nan, math.inf]),
        ("settling_seconds", [None, 0.0, 86400.0], [-1.0, 1e9, math.nan, math.inf]),
    ],
)
def test_ranges(name: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(Hyperparameters(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Hyperparameters(**{name: value})


def test_the_floor_is_not_above_the_start() -> None:
    with pytest.raises(ValueError, match=r"^min_exploration_rate must be"):
        Hyperparameters(exploration_rate=0.01)


def test_exploration_decays_a_step_for_each_thousand_interactions_to_its_floor() -> None:
    default = Hyperparameters()
    assert default.epsilon(0) == 0.3
    assert default.epsilon(1000) == pytest.approx(0.3 * 0.995)
    assert default.epsilon(100_000) == pytest.approx(0.3 * 0.995**100)
    # 0.3 * 0.995 ** n passes 0.05 between n = 357 and 358.
    assert default.epsilon(357_000) > 0.05 == default.epsilon(358_000) == default.epsilon(10**12)
    assert Hyperparameters(exploration_decay=1.0).epsilon(10**9) == 0.3


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0.5, 1), st.floats(0, 0.3))
def test_exploration_never_rises_and_stays_in_range(
    one: int, two: int, decay: float, floor: float
) -> None:
    settings = Hyperparameters(exploration_decay=decay, min_exploration_rate=floor)
    early, late = sorted((one, two))
    assert floor <= settings.epsilon(late) <= settings.epsilon(early) <= 0.3


def test_they_survive_a_dict() -> None:
    settings = Hyperparameters(learning_rate=0.2, settling_seconds=5.0)
    assert Hyperparameters(**settings.to_dict()) == settings
