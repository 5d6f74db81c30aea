"""Gates: each passes and fails on its own figure, and the bound on Q holds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.evaluation.gates import Figures, Thresholds, check, q_bound, reward_bounds
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import train
from recparams_rl.objectives import Objectives, weighted_reward
from recparams_rl.reward import REACTIONS, RewardWeights, reaction_mask, rewards
from recparams_rl.transitions import Transitions

GOOD = Figures(
    interactions=1000,
    average_reward=0.31,
    improvement=(-0.4, 0.0),
    improvement_reason="",
    largest_q=66.0,
    q_bound=66.0,
    states=500,
    active_states=1000,
)


def test_a_good_candidate_passes() -> None:
    gates = check(GOOD, Thresholds())
    assert all(gate.passed for gate in gates), gates
    assert [gate.name for gate in gates] == [
        "interactions",
        "average_reward",
        "improvement",
        "q_bound",
        "coverage",
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"interactions": 999}, "interactions"),
        ({"average_reward": 0.3}, "average_reward"),
        ({"average_reward": float("nan")}, "average_reward"),
        ({"improvement": (-0.4, -0.001)}, "improvement"),
        ({"largest_q": 66.1}, "q_bound"),
        ({"largest_q": float("nan")}, "q_bound"),
        ({"states": 499}, "coverage"),
    ],
)
def test_each_gate_fails_on_its_own_figure(change: dict[str, object], name: str) -> None:
    failed = [gate for gate in check(replace(GOOD, **change), Thresholds()) if not gate.passed]
    assert [gate.name for gate in failed] == [name]


def test_what_cannot_be_told_passes() -> None:
    unknown = replace(GOOD, improvement=None, improvement_reason="too few people")
    (gate,) = (gate for gate in check(unknown, Thresholds()) if gate.name == "improvement")
    assert gate.passed
    assert gate.value is None
    assert "too few people" in gate.explanation


bounds = st.one_of(st.none(), st.tuples(st.floats(-3, 3), st.floats(-3, 3)).map(sorted))


@given(bounds)
def test_only_what_is_shown_worse_is_refused(bounds: list[float] | None) -> None:
    figures = replace(GOOD, improvement=None if bounds is None else (bounds[0], bounds[1]))
    refused = [gate.name for gate in check(figures, Thresholds()) if not gate.passed]
    shown_worse = bounds is not None and bounds[1] < 0
    assert refused == (["improvement"] if shown_worse else [])
    assert (figures.verdict == "worse") == shown_worse
    assert (figures.verdict == "better") == (bounds is not None and bounds[0] > 0)


def test_thresholds_are_settings() -> None:
    poor = Figures(5, -1.0, (-0.5, 0.1), "", 100.0, 10.0, 1, 1000)
    lenient = Thresholds(0, -2.0, 11.0, 0.0)
    assert all(gate.passed for gate in check(poor, lenient))
    passed = [gate.name for gate in check(poor, Thresholds()) if gate.passed]
    assert passed == ["improvement"]


def test_the_bounds_of_the_seeds_reward() -> None:
    # dislike, skip, mood -1; like, complete, share, completion rate 1, mood 1
    assert reward_bounds(RewardWeights(), Objectives()) == pytest.approx((-1.8, 3.3))
    assert q_bound(RewardWeights(), Objectives(), 0.95) == pytest.approx(66.0)
    low, high = reward_bounds(RewardWeights(), Objectives(2.0, 0.5, -0.25))
    assert (low, high) == pytest.approx((-3.6 - 0.25, 6.6 + 0.5))


names = st.lists(st.sampled_from(REACTIONS), max_size=6).filter(
    lambda chosen: not ({"like", "dislike"} <= set(chosen) or {"complete", "skip"} <= set(chosen))
)
weights = st.builds(
    RewardWeights,
    **{name: st.floats(-3, 3) for name in (*REACTIONS, "completion_rate", "mood_change")},
)
objectives = st.builds(
    Objectives,
    engagement=st.floats(-2, 2),
    diversity=st.floats(-2, 2),
    novelty=st.floats(-2, 2),
)


@given(weights, objectives, names, st.floats(0, 1), st.floats(-1, 1), st.integers(0, 26))
def test_no_reward_lies_outside_the_bounds(
    weights: RewardWeights,
    objectives: Objectives,
    names: list[str],
    rate: float,
    mood: float,
    action: int,
) -> None:
    engagement = rewards(weights, np.array([reaction_mask(names)]), [rate], [mood])
    (reward,) = weighted_reward(objectives, engagement, np.array([action], dtype=np.uint8))
    low, high = reward_bounds(weights, objectives)
    assert low - 1e-4 <= reward <= high + 1e-4


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0), st.floats(0.0, 0.99))
def test_learning_stays_within_the_bound(seed: int, rate: float, discount: float) -> None:
    rng = np.random.default_rng(seed)
    n = 20_000
    low, high = reward_bounds(RewardWeights(), Objectives())
    transitions = Transitions(
        rng.integers(0, 4, n).astype(np.int32),
        rng.integers(0, 3, n).astype(np.uint8),
        rng.uniform(low, high, n).astype(np.float32),
        rng.integers(-1, 4, n).astype(np.int32),
    )
    q, visits = np.zeros((4, 3), dtype=np.float32), np.zeros((4, 3), dtype=np.int32)
    chosen = Hyperparameters(learning_rate=rate, discount_factor=discount)
    train(q, visits, transitions, chosen, states_per_cell=4)
    bound = q_bound(RewardWeights(), Objectives(), discount)
    learned = replace(GOOD, largest_q=float(np.abs(q).max()), q_bound=bound)
    (gate,) = (gate for gate in check(learned, Thresholds()) if gate.name == "q_bound")
    assert gate.passed, gate
