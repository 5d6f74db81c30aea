"""The served policy: where its choices come from, and what it refuses to be."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.action import N_ACTIONS
from rl.policy import (
    BORROWED,
    LEARNED,
    MIN_OWN_VISITS,
    RULE_BASED,
    GreedyTable,
    propensity,
    publish,
    rule_based_policy,
)
from rl.rules import rule_table
from rl.smoothing import Smoothing, smooth
from rl.state import Context, StateSpace

SPACE = StateSpace(3, ("music", "video"), ("calm", "sad"), ("morning", "night"))


def table() -> tuple[Any, Any]:
    return (
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.float32),
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.int32),
    )


def published(q: Any, visits: Any, **options: float) -> tuple[Any, Any]:
    """Actions and sources of the published policy."""
    policy = publish(
        SPACE, q, visits, learning_rate=0.1, epsilon=0.05, smoothing=Smoothing(**options)
    )
    assert policy.epsilon == 0.05 and policy.space == SPACE
    return np.frombuffer(policy.actions, np.uint8), np.frombuffer(policy.sources, np.uint8)


def other_than(action: int) -> int:
    return (action + 13) % N_ACTIONS


def test_without_data_it_is_the_rules() -> None:
    space = StateSpace()
    rules = rule_based_policy(space, 0.3)
    assert rules.actions == rule_table(space).tobytes()
    assert set(rules.sources) == {RULE_BASED}
    nothing = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    assert rules == publish(
        space,
        nothing,
        nothing.astype(np.int32),
        learning_rate=0.1,
        epsilon=0.3,
        smoothing=Smoothing(),
    )


def test_far_from_any_data_it_is_the_rules() -> None:
    q, visits = table()
    rules = rule_table(SPACE)
    here = SPACE.index([90.0] * 5, Context("music", "calm", "morning"))
    cell = here // SPACE.n_contexts
    q[here], visits[here] = -1.0, 40
    q[here, other_than(rules[here])] = 1.0
    actions, sources = published(q, visits, kernel_width=10.0)
    assert actions[here] == other_than(rules[here]) and sources[here] == LEARNED
    near = sources.reshape(-1, SPACE.n_contexts)[cell]
    assert (np.delete(near, here % SPACE.n_contexts) == BORROWED).all()
    far = np.arange(SPACE.n_states) // SPACE.n_contexts == SPACE.cell([0.0] * 5)
    assert (sources[far] == RULE_BASED).all()
    assert np.array_equal(actions[sources == RULE_BASED], rules[sources == RULE_BASED])
    assert (sources == RULE_BASED).any()


def test_a_choice_counts_as_learned_from_enough_visits_of_the_state() -> None:
    q, visits = table()
    first, second, third = 0, 1, 2
    visits[first, 0] = MIN_OWN_VISITS - 1
    visits[second, 3], visits[second, 4] = MIN_OWN_VISITS - 3, 3
    _, sources = published(q, visits)
    assert sources[[first, second, third]].tolist() == [BORROWED, LEARNED, BORROWED]


def test_one_visit_of_somebody_alike_is_evidence_and_less_is_not() -> None:
    q, visits = table()
    visits[0, 0] = 1
    _, sources = published(q, visits)
    known = sources.reshape(-1, SPACE.n_contexts) != RULE_BASED
    assert known[0].all() and not known[1:].any()


def test_actions_are_the_best_of_the_smoothed_table() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(SPACE.n_states, N_ACTIONS)).astype(np.float32)
    visits = rng.integers(0, 4, q.shape).astype(np.int32)
    q[visits == 0] = 0.0
    before = q.tobytes(), visits.tobytes()
    actions, _ = published(q, visits)
    smoothed = smooth(SPACE, q, visits, rule_table(SPACE), learning_rate=0.1, smoothing=Smoothing())
    assert np.array_equal(actions, smoothed.advantage.argmax(axis=1))
    assert (q.tobytes(), visits.tobytes()) == before


def test_similar_people_and_not_distant_ones_decide_for_a_cell_without_data() -> None:
    """Openness low likes one thing, high another; the middle is nearer to neither, the rest is."""
    q, visits = table()
    liked = {0: 4, 2: 22}
    cells = np.arange(SPACE.n_cells)
    openness = cells // 81
    for position, action in liked.items():
        for cell in cells[(openness == position) & (cells % 2 == 0)]:
            for state in range(cell * SPACE.n_contexts, (cell + 1) * SPACE.n_contexts):
                q[state, [4, 22]], visits[state, [4, 22]] = -1.0, 50
                q[state, action] = 1.0
    actions, sources = published(q, visits)
    # The two differ in energy alone: other actions of the same energy, such as the rules', may win.
    energy = actions.reshape(3, -1) // 9
    assert (energy[0] == 0).all() and (energy[2] == 2).all()
    of_odd_cells = sources.reshape(-1, SPACE.n_contexts)[1::2]
    assert (of_odd_cells == BORROWED).all()


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
