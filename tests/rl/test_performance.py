"""How people reacted: means over logged interactions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.evaluation.performance import LoggedPerformance, logged_performance
from recparams_rl.reward import REACTIONS, reaction_mask


def performance(rows: list[tuple[int, list[str], float, float]]) -> LoggedPerformance:
    return logged_performance(
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([reaction_mask(row[1]) for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.float32),
        np.array([row[3] for row in rows], dtype=np.float32),
    )


def test_a_few_interactions() -> None:
    assert performance(
        [
            (7, ["like", "complete"], 1.5, 0.7),
            (7, ["skip"], -0.25, math.nan),
            (9, ["impression"], 0.0, 1.0),
            (8, ["like", "share", "complete"], 2.25, math.nan),
        ]
    ) == LoggedPerformance(
        interactions=4,
        users=3,
        average_reward=0.875,
        like_rate=0.5,
        reaction_counts={
            "like": 2,
            "dislike": 0,
            "complete": 2,
            "skip": 1,
            "share": 1,
            "impression": 1,
        },
        unknown_propensity=2,
    )


def test_no_interactions() -> None:
    assert performance([]) == LoggedPerformance(0, 0, 0.0, 0.0, dict.fromkeys(REACTIONS, 0), 0)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.lists(st.sampled_from(REACTIONS), max_size=4),
            st.floats(-5, 5, width=32),
            st.one_of(st.floats(0, 1, width=32), st.just(math.nan)),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_it_counts(rows: list[tuple[int, list[str], float, float]]) -> None:
    found = performance(rows)
    assert found.interactions == len(rows)
    assert found.users == len({user for user, _, _, _ in rows})
    assert found.like_rate == sum("like" in names for _, names, _, _ in rows) / len(rows)
    assert found.average_reward == pytest.approx(
        math.fsum(reward for _, _, reward, _ in rows) / len(rows), abs=1e-9
    )
    assert found.unknown_propensity == sum(math.isnan(row[3]) for row in rows)
    for name, count in found.reaction_counts.items():
        assert count == sum(name in names for _, names, _, _ in rows)


def test_the_mean_of_many_small_rewards_is_exact() -> None:
    n = 1_000_000
    reward = np.full(n, 0.1, dtype=np.float32)
    nobody, nothing = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.uint8)
    found = logged_performance(nobody, nothing, reward, np.zeros(n))
    assert found.average_reward == pytest.approx(float(np.float32(0.1)), abs=1e-12)
