"""The served policy: where its choices come from, and what it refuses to be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS
from recparams_rl.policy import (
    BORROWED,
    LEARNED,
    MIN_OWN_VISITS,
    RULE_BASED,
    GreedyTable,
    propensity,
    publish,
    rule_based_policy,
)
from recparams_rl.rules import rule_based_action, rule_table
from recparams_rl.smoothing import Smoothing, Visited
from recparams_rl.state import Context, StateSpace, serving_space

SPACE = StateSpace(3, ("music", "video"), ("calm", "sad"), ("morning", "night"))


def table() -> tuple[Any, Any]:
    return (
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.float32),
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.int32),
    )


def published(q: Any, visits: Any, **options: float) -> GreedyTable:
    """The published policy of a table, all of it rewarded at once."""
    policy = publish(
        SPACE,
        Visited.of(q, visits, q),
        learning_rate=0.1,
        epsilon=0.05,
        smoothing=Smoothing(**options),  # type: ignore[arg-type]
    )
    assert policy.epsilon == 0.05
    return policy


@pytest.mark.parametrize("bins", [0, 7])
def test_without_data_it_is_the_rules(bins: int) -> None:
    q, visits = table()
    policy = published(q, visits, serving_bins=bins)
    assert policy == rule_based_policy(serving_space(SPACE, bins), 0.05)
    assert policy.actions == rule_table(policy.space).tobytes()
    assert set(policy.sources) == {RULE_BASED}


@pytest.mark.parametrize("bins", [3, 4, 5, 6, 7, 8, 9, 10])
def test_what_is_served_can_be_the_rules_exactly(bins: int) -> None:
    space = serving_space(StateSpace(), bins)
    rules = rule_table(space)
    scores = np.random.default_rng(bins).uniform(0, 100, (300, 5))
    scores[:100] = np.random.default_rng(0).choice([0, 39.99, 40, 59.99, 60, 100], (100, 5))
    context = Context("game", "happy", "evening")
    for one in scores.tolist():
        assert rules[space.index(one, context)] == rule_based_action(one, context).index


def test_a_choice_counts_as_learned_from_enough_visits_of_the_state() -> None:
    q, visits = table()
    first, second, third = 0, 1, 2
    visits[first, 0] = MIN_OWN_VISITS - 1
    visits[second, 3], visits[second, 4] = MIN_OWN_VISITS - 3, 3
    policy = published(q, visits, serving_bins=0)
    rules = rule_table(SPACE)
    for state in (first, third):
        kept = policy.actions[state] == rules[state]
        assert policy.sources[state] == (RULE_BASED if kept else BORROWED)
    assert policy.sources[second] == LEARNED


def test_where_the_source_is_the_rules_so_is_the_action() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(SPACE.n_states, N_ACTIONS)).astype(np.float32)
    visits = (rng.random(q.shape) < 0.05).astype(np.int32)
    q *= visits
    policy = published(q, visits)
    sources = np.frombuffer(policy.sources, np.uint8)
    rules = rule_table(policy.space)
    assert (policy.greedy[sources == RULE_BASED] == rules[sources == RULE_BASED]).all()
    assert (policy.greedy[sources == BORROWED] != rules[sources == BORROWED]).all()
    assert {RULE_BASED, BORROWED} <= set(policy.sources)


GOOD = {
    "space": SPACE,
    "actions": bytes(SPACE.n_states),
    "sources": bytes(SPACE.n_states),
    "epsilon": 0.1,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"actions": bytes(SPACE.n_states - 1)}, "actions has"),
        ({"actions": bytes(SPACE.n_states + 1)}, "actions has"),
        ({"actions": b""}, "actions has"),
        ({"sources": b""}, "sources has"),
        ({"actions": bytes(SPACE.n_states - 1) + b"\x1b"}, "actions has a value of 27"),
        ({"sources": b"\x03" + bytes(SPACE.n_states - 1)}, "sources has a value of 3"),
        ({"space": StateSpace(2)}, "actions has"),
        ({"epsilon": -0.01}, "epsilon"),
        ({"epsilon": 1.01}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(wrong: dict[str, Any], message: str) -> None:
    GreedyTable(**GOOD)
    with pytest.raises(ValueError, match=message):
        GreedyTable(**{**GOOD, **wrong})


def test_the_outermost_values_are_accepted() -> None:
    last = bytes([N_ACTIONS - 1]) * SPACE.n_states
    for epsilon in (0.0, 1.0):
        GreedyTable(SPACE, last, bytes([RULE_BASED]) * SPACE.n_states, epsilon)


@given(st.floats(0.0, 1.0))
def test_propensities_sum_to_one(epsilon: float) -> None:
    others = propensity(epsilon, greedy=False)
    greedy = propensity(epsilon, greedy=True)
    assert greedy + (N_ACTIONS - 1) * others == pytest.approx(1.0, abs=1e-12)
    assert 0.0 <= others <= greedy <= 1.0 + 1e-12


def test_propensities_at_the_ends() -> None:
    assert propensity(0.0, greedy=True) == 1.0 and propensity(0.0, greedy=False) == 0.0
    assert propensity(1.0, greedy=True) == propensity(1.0, greedy=False) == 1 / N_ACTIONS
    assert propensity(0.27, greedy=False) == pytest.approx(0.01)


def test_propensities_are_how_often_an_epsilon_greedy_choice_falls_on_an_action() -> None:
    rng = np.random.default_rng(0)
    n, epsilon, greedy = 200_000, 0.3, 5
    chosen = np.where(rng.random(n) < epsilon, rng.integers(0, N_ACTIONS, n), greedy)
    share = np.bincount(chosen, minlength=N_ACTIONS) / n
    expected = [propensity(epsilon, greedy=action == greedy) for action in range(N_ACTIONS)]
    assert share == pytest.approx(expected, abs=0.004)
