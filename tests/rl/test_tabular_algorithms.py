"""Double Q-learning, Expected SARSA, UCB and Boltzmann against plain versions of themselves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners import double_q_learning, expected_sarsa
from recparams_rl.learners.boltzmann import Boltzmann, BoltzmannHyperparameters
from recparams_rl.learners.expected_sarsa import ExpectedSarsaHyperparameters
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.ucb import Ucb, UcbHyperparameters, choose
from recparams_rl.numerics import softmax
from recparams_rl.policy import RULE_BASED, GreedyTable
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

SPACE = StateSpace(bins=2)
OWN_BINS = Smoothing(serving_bins=0)
RATE, DISCOUNT = 0.1, 0.95


def log(seed: int, n: int, states: int, actions: int) -> Transitions:
    rng = np.random.default_rng(seed)
    following = rng.integers(states, size=n)
    following[rng.random(n) < 0.3] = TERMINAL
    return Transitions(
        rng.integers(states, size=n).astype(np.int32),
        rng.integers(actions, size=n).astype(np.uint8),
        rng.normal(size=n).astype(np.float32),
        following.astype(np.int32),
    )


def rows(t: Transitions) -> Any:
    columns = t.state, t.action, t.reward, t.next_state
    return zip(*(column.tolist() for column in columns), strict=True)


@given(st.integers(0, 1000), st.integers(1, 200))
def test_double_q_learning_is_what_its_docstring_says(seed: int, n: int) -> None:
    t = log(seed, n, 5, 3)
    q, counts = np.zeros((2, 5, 3), np.float32), np.zeros((2, 5, 3), np.int32)
    double_q_learning.update(
        q, counts, t.state, t.action, t.reward, t.next_state, np.float32(RATE), np.float32(DISCOUNT)
    )
    tables: list[dict[tuple[int, int], float]] = [{}, {}]
    updates = np.zeros((2, 5, 3), int)
    for s, a, r, following in rows(t):
        mine = int(double_q_learning._coin(s * 3 + a, int(updates[:, s, a].sum())))
        table, other = tables[mine], tables[1 - mine]
        goal = r
        tried = [b for b in range(3) if (following, b) in table]
        if following >= 0 and tried:
            best = max(tried, key=lambda b: table[following, b])
            goal += DISCOUNT * other.get((following, best), table[following, best])
        table[s, a] = table.get((s, a), 0.0) + RATE * (goal - table.get((s, a), 0.0))
        updates[mine, s, a] += 1
    assert (counts == updates).all()
    for which, table in enumerate(tables):
        for (s, a), value in table.items():
            assert q[which, s, a] == pytest.approx(value, abs=1e-5)


def test_the_coin_is_fair_and_does_not_repeat() -> None:
    heads = np.array(
        [[double_q_learning._coin(pair, n) for n in range(200)] for pair in range(500)]
    )
    assert abs(heads.mean() - 0.5) < 4 * 0.5 / np.sqrt(heads.size)
    for other in (heads[:, 1:] == heads[:, :-1], heads[1:] == heads[:-1]):
        assert abs(other.mean() - 0.5) < 4 * 0.5 / np.sqrt(other.size)


def test_both_tables_together_mean_what_one_would() -> None:
    """Of a pair with the same reward always, whatever the coin did."""
    counts = np.array([[[3, 0, 2]], [[4, 5, 0]]], np.int32)
    q = (2.0 * (1 - (1 - RATE) ** counts)).astype(np.float32)
    both = double_q_learning.combine_tables(q, counts, RATE)
    np.testing.assert_allclose(both, 2.0 * (1 - (1 - RATE) ** counts.sum(axis=0)), rtol=1e-6)
    never = double_q_learning.combine_tables(q * 0, counts * 0, 1.0)
    assert (never == 0).all()


@given(st.integers(0, 1000), st.integers(1, 200), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_expected_sarsa_is_what_its_docstring_says(seed: int, n: int, epsilon: float) -> None:
    t = log(seed, n, 5, 3)
    q, visits = np.zeros((5, 3), np.float32), np.zeros((5, 3), np.int32)
    expected_sarsa.update(
        *(q, visits, t.state, t.action, t.reward, t.next_state),
        *(np.float32(RATE), np.float32(DISCOUNT), np.float32(epsilon)),
    )
    table: dict[tuple[int, int], float] = {}
    for s, a, r, following in rows(t):
        tried = [table[following, b] for b in range(3) if (following, b) in table]
        value = 0.0
        if following >= 0 and tried:
            value = (1 - epsilon) * max(tried) + epsilon * sum(tried) / len(tried)
        old = table.get((s, a), 0.0)
        table[s, a] = old + RATE * (r + DISCOUNT * value - old)
    for (s, a), value in table.items():
        assert q[s, a] == pytest.approx(value, abs=1e-5)
    assert visits.sum() == n
    with pytest.raises(ValueError, match="target_epsilon"):
        ExpectedSarsaHyperparameters(target_epsilon=1.5)


def seeds_ucb(q: Any, visits: Any, exploration_param: float) -> int:
    """The function of the specification, "Multi-Armed Bandit Alternative", on one state's row."""
    total_visits = sum(visits)
    ucb_values = {}
    for action in range(len(q)):
        if visits[action] == 0:
            return action
        bonus = exploration_param * np.sqrt(np.log(total_visits) / visits[action])
        ucb_values[action] = q[action] + bonus
    return max(ucb_values.items(), key=lambda x: x[1])[0]


@given(
    st.lists(
        st.tuples(st.floats(-2, 2, width=32), st.integers(0, 3)), min_size=N_ACTIONS, max_size=27
    ),
    st.sampled_from([0.0, 0.5, 2.0]),
    st.booleans(),
)
def test_ucb_is_the_seeds(row: list[tuple[float, int]], confidence: float, all_of: bool) -> None:
    q = np.array([[value for value, _ in row]], np.float32)
    visits = np.array([[count + all_of for _, count in row]], np.int32)
    expected = seeds_ucb(q[0].astype(np.float64), visits[0].tolist(), confidence)
    assert int(choose(q, visits, confidence)[0]) == expected


def test_ucb_goes_through_the_actions_and_leaves_unseen_states_to_the_rules() -> None:
    found = Ucb(SPACE, UcbHyperparameters(), smoothing=OWN_BINS)
    one = np.array([40], np.int32)
    for expected in range(N_ACTIONS):
        policy = found.publish()
        if expected:
            assert policy.likeliest(one, np.zeros((1, 5)))[0] == expected
        reward, ends = np.array([0.5], np.float32), np.array([TERMINAL], np.int32)
        found.learn(Transitions(one, np.array([expected], np.uint8), reward, ends))
    others = np.setdiff1d(np.arange(SPACE.n_states), one)
    assert (policy.likeliest(others, np.zeros((len(others), 5))) == rule_table(SPACE)[others]).all()
    assert (policy.sources_of(others) == RULE_BASED).all()


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=27))
def test_softmax_is_boltzmanns(scores: list[float]) -> None:
    found = softmax(np.array([scores], np.float32))[0]
    exact = np.exp(np.array(scores) - max(scores))
    np.testing.assert_allclose(found, exact / exact.sum(), atol=1e-5)


@pytest.mark.parametrize(
    ("temperature", "spread"), [(1e-3, (1, 1.1)), (0.02, (1.1, 10)), (1e4, (23, 24.1))]
)
def test_temperature_is_between_the_best_and_anything(
    temperature: float, spread: tuple[float, float]
) -> None:
    """Perplexity of a state's choice: how many actions it amounts to."""
    t = log(9, 60_000, SPACE.n_states, N_ACTIONS)
    order = np.argsort(t.state, kind="stable")
    found = Boltzmann(SPACE, BoltzmannHyperparameters(temperature=temperature), smoothing=OWN_BINS)
    found.learn(t[order])
    policy = found.publish()
    assert isinstance(policy, GreedyTable)
    assert policy.draws is not None
    states = np.flatnonzero(policy.sources_of(np.arange(SPACE.n_states)) != RULE_BASED)
    assert len(states) > 100
    # Half of all draws are of the greedy action.
    greedy = policy.greedy[states]
    dist = 2.0 * policy.draws.dist(states, greedy) - np.eye(N_ACTIONS)[greedy]
    np.testing.assert_allclose(dist.sum(axis=1), 1.0, rtol=1e-12)
    assert (dist >= 0).all()
    amounts = np.exp(-np.sum(dist * np.log(np.maximum(dist, 1e-300)), axis=1))
    assert spread[0] - 1e-9 <= np.median(amounts) < spread[1]


@pytest.mark.parametrize(
    ("schedule", "after_ten_thousand"),
    [
        ("exponential", 0.3 * 0.99**10),
        ("linear", 0.3 * 0.9),
        ("inverse", 0.3 / 1.1),
        ("constant", 0.3),
    ],
)
def test_exploration_falls_as_scheduled(schedule: str, after_ten_thousand: float) -> None:
    settings = Hyperparameters(exploration_schedule=schedule, exploration_decay=0.99)
    assert settings.epsilon(0) == 0.3
    assert settings.epsilon(10_000) == pytest.approx(after_ten_thousand)
    assert settings.epsilon(10**9) == (0.3 if schedule == "constant" else 0.05)
