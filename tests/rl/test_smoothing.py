"""Smoothing: the regression against plain algebra, and what it is for."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import ACTION_LEVELS, N_ACTIONS
from recparams_rl.basis import (
    DISTANCE,
    N_DISTANCES,
    N_TRAIT_TERMS,
    TRAIT_TERMS,
    Basis,
    trait_columns,
)
from recparams_rl.choice import cautious_actions
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.policy import publish
from recparams_rl.regression import Curve, Prior, Rows, fit, predict
from recparams_rl.rules import rule_table
from recparams_rl.smoothing import (
    Smoothed,
    Smoothing,
    Visited,
    bin_means,
    information,
    populations_of,
    smooth,
)
from recparams_rl.state import Context, StateSpace, of_cells, serving_space
from recparams_rl.transitions import TERMINAL, Transitions
from tests.rl.reference import design_matrix, reference_fit

RATE = 0.1
SMALL = StateSpace(2, ("music", "video"), ("calm", "sad"), ("evening",))
SPACE = StateSpace(3, ("music", "video"), ("calm", "sad"), ("morning", "night"))


def random_rows(rng: np.random.Generator, space: StateSpace, n: int) -> Rows:
    pair = np.sort(rng.integers(space.n_contexts * N_ACTIONS, size=n))
    cell = rng.integers(space.n_cells, size=n)
    rules = rule_table(space).reshape(space.n_cells, -1)[cell, pair // N_ACTIONS]
    return Rows(cell.astype(np.int32), pair.astype(np.int32), rules, rng.uniform(0.5, 19.0, n))


def traits_of(space: StateSpace) -> Any:
    return trait_columns((of_cells([space.midpoints] * 5) - 50.0) / 25.0)


PRIOR = Prior(0.05, 0.3, 0.3, np.linspace(-0.2, 0.2, N_DISTANCES), 0.1)


@pytest.mark.parametrize("n", [300, 500])
@pytest.mark.parametrize("curve", [None, Curve(-1.5, 3.0, 0.4)])
def test_the_fit_equals_plain_algebra_on_the_whole_design(curve: Curve | None, n: int) -> None:
    rng = np.random.default_rng(3)
    basis, rows, traits = Basis(SMALL), random_rows(rng, SMALL, n), traits_of(SMALL)
    y = rng.normal(0.4 + 0.3 * ACTION_LEVELS[0][rows.pair % N_ACTIONS], 0.5)
    posterior, left = fit(basis, rows, y, traits, PRIOR, curve)
    x = design_matrix(basis, SMALL, rows, traits)
    np.testing.assert_allclose(
        predict(basis, rows, traits, posterior.mean), x @ posterior.mean, atol=1e-9
    )
    mean, covariance, noise = reference_fit(basis, x, rows.weight, y, PRIOR, curve)
    np.testing.assert_allclose(posterior.mean, mean, atol=1e-7)
    assert posterior.noise == pytest.approx(noise, rel=1e-7)
    np.testing.assert_allclose(
        np.linalg.inv(posterior.factor @ posterior.factor.T), covariance, atol=1e-8
    )
    eta = x @ mean
    fitted = np.average(y, weights=rows.weight) + eta if curve is None else curve.at(eta)[0]
    np.testing.assert_allclose(left, y - fitted, atol=1e-6)


def test_draws_have_the_covariance_of_the_posterior() -> None:
    rng = np.random.default_rng(4)
    basis, rows = Basis(SMALL), random_rows(rng, SMALL, 300)
    posterior, _ = fit(basis, rows, rng.normal(size=300), traits_of(SMALL), PRIOR, None)
    drawn = posterior.draws(np.random.default_rng(1), 20_000)
    exact = np.linalg.inv(posterior.factor @ posterior.factor.T)
    np.testing.assert_allclose(drawn.std(axis=1), np.sqrt(np.diag(exact)), rtol=0.05)
    first = np.cov(drawn[:8])
    np.testing.assert_allclose(first, exact[:8, :8], atol=5e-2 * exact.diagonal().max())


def test_columns_have_a_mean_square_of_about_one() -> None:
    basis = Basis(SPACE)
    everything = np.arange(SPACE.n_contexts * N_ACTIONS)
    rows = Rows(
        np.zeros(len(everything), np.int32),
        everything.astype(np.int32),
        np.zeros(len(everything), np.uint8),
        np.ones(len(everything)),
    )
    z = np.ones((1, N_TRAIT_TERMS))
    x = design_matrix(basis, SPACE, rows, z)
    np.testing.assert_allclose((x[:, : basis.distance.start] ** 2).mean(axis=0), 1.0)


def test_distances_are_of_levels_of_each_dimension() -> None:
    for rule in range(N_ACTIONS):
        for action in range(N_ACTIONS):
            apart = np.abs(ACTION_LEVELS[:, rule] - ACTION_LEVELS[:, action])
            expected = [*(apart == 1), *(apart == 2), not apart.any()]
            assert DISTANCE[rule, action].tolist() == expected


def test_by_trait_term_takes_several_sets_at_once() -> None:
    basis = Basis(SMALL)
    sets = np.random.default_rng(0).normal(size=(basis.n_columns, 3))
    both = basis.by_trait_term(sets)
    assert both.shape == (SMALL.n_contexts, N_ACTIONS, N_TRAIT_TERMS, 3)
    for place in range(3):
        np.testing.assert_allclose(both[..., place], basis.by_trait_term(sets[:, place]))
    assert set(TRAIT_TERMS) == {"one", "scores", "squares", "products"}


@given(st.integers(1, 400), st.floats(0.01, 1.0))
def test_information_is_the_number_of_independent_targets(n: int, rate: float) -> None:
    weight = rate * (1.0 - rate) ** np.arange(n)
    expected = weight.sum() ** 2 / (weight**2).sum()
    assert information(np.array([float(n)]), rate)[0] == pytest.approx(expected, rel=1e-6)
    assert expected <= (2.0 - rate) / rate + 1e-9


@given(st.floats(10, 90), st.floats(6, 40), st.integers(0, 10).filter(lambda n: n not in (1, 2)))
def test_bin_means_are_those_of_a_normal_distribution(mean: float, sd: float, bins: int) -> None:
    space = serving_space(StateSpace(), bins)
    from statistics import NormalDist

    found = bin_means(NormalDist(mean, sd), space.edges)
    assert ((found >= space.edges[:-1]) & (found <= space.edges[1:])).all()
    points = np.linspace(0, 100, 200_001)[:-1] + 0.00025
    density = np.exp(-0.5 * ((points - mean) / sd) ** 2)
    place = np.searchsorted(space.edges, points, side="right") - 1
    mass = np.bincount(place, density)
    exact = np.bincount(place, density * points) / np.maximum(mass, 1e-300)
    likely = mass / mass.sum() > 1e-4
    np.testing.assert_allclose(found[likely], exact[likely], atol=0.01)


def test_the_population_is_found_again_in_counts_of_cells() -> None:
    rng = np.random.default_rng(0)
    means, sds = np.array([40.0, 50, 55, 60, 45]), np.array([15.0, 20, 12, 18, 22])
    scores = rng.normal(means, sds, (200_000, 5))
    scores = scores[((scores >= 0) & (scores <= 100)).all(axis=1)]
    space = StateSpace()
    counts = np.bincount(space.cells(scores), minlength=space.n_cells).astype(np.float64)
    found = populations_of(space, counts)
    np.testing.assert_allclose([one.mean for one in found], scores.mean(axis=0), atol=0.5)
    np.testing.assert_allclose([one.stdev for one in found], scores.std(axis=0), atol=0.6)


def learner_of(
    space: StateSpace, reward: Any, n: int, seed: int = 0, **smoothing: float
) -> QLearning:
    """A learner of n random transitions, with rewards by `reward(states, actions, rng)`."""
    rng = np.random.default_rng(seed)
    state = np.sort(rng.integers(space.n_states, size=n)).astype(np.int32)
    action = rng.integers(N_ACTIONS, size=n).astype(np.uint8)
    ends = np.full(n, TERMINAL, np.int32)
    found = QLearning(space, Hyperparameters(), smoothing=Smoothing(**smoothing))  # type: ignore[arg-type]
    found.learn(Transitions(state, action, reward(state, action, rng).astype(np.float32), ends))
    return found


def smoothed(learner: QLearning) -> Smoothed:
    return smooth(
        learner.space,
        Visited.of(learner.q, learner.visits, learner.rewards),
        rule_table(learner.space),
        learning_rate=RATE,
        smoothing=learner.smoothing,
    )


def noise(state: Any, action: Any, rng: np.random.Generator) -> Any:
    return rng.normal(size=len(state))


def by_openness(state: Any, action: Any, rng: np.random.Generator) -> Any:
    """High energy is liked by the open, low energy by the others; noise twice as large."""
    openness = state // SPACE.n_contexts // 81 - 1
    return 0.5 * openness * (ACTION_LEVELS[0][action] - 1) + rng.normal(size=len(state))


@pytest.mark.parametrize("bins", [0, 3, 7])
def test_choices_equal_plain_algebra(bins: int) -> None:
    found = smoothed(learner_of(SPACE, by_openness, 3000))
    serving = serving_space(SPACE, bins)
    rules = rule_table(serving)
    advantage = found.advantages(serving, rules) / found.scale
    n = np.arange(serving.n_states)
    assert (advantage[n, rules] == 0).all()
    traits = found.traits(serving)
    deviation = np.einsum("xp,capm->xcam", traits, found.term_draws, optimize=True)
    deviation = deviation.reshape(serving.n_states, N_ACTIONS, -1) + found.away_draws[rules]
    deviation -= deviation[n, rules][:, None]
    width = np.sqrt((deviation**2).mean(axis=2))
    for caution in (0.0, 0.25, 1.0):
        lowered = advantage - caution * width
        actions = cautious_actions(found, serving, rules, caution)
        np.testing.assert_allclose(lowered[n, actions], lowered.max(axis=1), atol=1e-4)
    assert (cautious_actions(found, serving, rules, 1e6) == rules).all()


def test_what_people_alike_like_is_learned_in_cells_without_data() -> None:
    found = learner_of(SPACE, by_openness, 20_000, caution=0.0, serving_bins=0)
    cells = np.arange(SPACE.n_cells)
    # Nothing is known of every third cell.
    unseen = np.repeat(cells % 3 == 1, SPACE.n_contexts)
    for table in found.arrays().values():
        table[unseen] = 0
    energy = found.publish().likeliest(np.arange(SPACE.n_states), np.zeros((0, 5))) // 9
    openness = np.repeat(cells // 81, SPACE.n_contexts)
    assert (energy[unseen & (openness == 0)] == 0).mean() > 0.95
    assert (energy[unseen & (openness == 2)] == 2).mean() > 0.95


def test_noise_alone_leaves_the_rules_with_caution() -> None:
    found = learner_of(SPACE, noise, 1000)
    policy = found.publish()
    rules = rule_table(policy.space)
    kept = policy.likeliest(np.arange(policy.space.n_states), np.zeros((0, 5))) == rules
    assert kept.mean() > 0.8


def test_a_states_own_data_wins_where_it_is_known_and_told_to() -> None:
    found = learner_of(SPACE, by_openness, 5000, caution=0.0, serving_bins=0, shrinkage=0.5)
    state = SPACE.index([90.0] * 5, Context("music", "calm", "night"))
    disliked, liked = 22, 4
    for table in (found.q, found.rewards):
        table[state], table[state, liked] = -1.0, 3.0
    found.visits[state] = 100
    assert found.publish().likeliest(np.array([state]), np.zeros((1, 5)))[0] == liked
    advantage = smoothed(found).advantages(SPACE, rule_table(SPACE))[state]
    assert advantage[liked] - advantage[disliked] > 3.0


@settings(max_examples=5, deadline=None)
@given(st.floats(-3.0, 3.0), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 1000))
def test_the_unit_and_the_zero_of_rewards_change_no_choice(
    constant: float, factor: float, seed: int
) -> None:
    def changed(state: Any, action: Any, rng: np.random.Generator) -> Any:
        return factor * (by_openness(state, action, rng) + constant)

    one = learner_of(SPACE, by_openness, 3000, seed, serving_bins=0).publish()
    other = learner_of(SPACE, changed, 3000, seed, serving_bins=0).publish()
    states = np.arange(SPACE.n_states)
    same = one.likeliest(states, np.zeros((0, 5))) == other.likeliest(states, np.zeros((0, 5)))
    # But for rounding, and for what ten visits of nothing weigh against 3,000.
    assert same.mean() > 0.95


@pytest.mark.parametrize(("foresight", "energy"), [(0.0, 2), (0.3, 2), (1.0, 0)])
def test_what_follows_counts_as_far_as_told(foresight: float, energy: int) -> None:
    """High energy is rewarded at once, low energy twice as much later."""
    visits = np.full((SPACE.n_states, N_ACTIONS), 20, np.int32)
    level = ACTION_LEVELS[0] - 1.0
    rewards = np.tile((0.5 * level).astype(np.float32), (SPACE.n_states, 1))
    q = np.tile((-0.5 * level).astype(np.float32), (SPACE.n_states, 1))
    smoothing = Smoothing(0.0, foresight=foresight, serving_bins=0)
    policy = publish(
        SPACE, Visited.of(q, visits, rewards), learning_rate=RATE, epsilon=0.0, smoothing=smoothing
    )
    assert (policy.greedy // 9 == energy).all()


def test_the_same_table_gives_the_same_policy_and_is_not_touched() -> None:
    found = learner_of(SPACE, by_openness, 2000)
    before = {name: table.tobytes() for name, table in found.arrays().items()}
    first, second = found.publish(), found.publish()
    assert first == second
    assert {name: table.tobytes() for name, table in found.arrays().items()} == before


def test_all_rewards_alike_and_a_single_one_leave_the_rules() -> None:
    for n in (1, 2000):
        alike = learner_of(SPACE, lambda state, _action, _rng: np.full(len(state), 0.5), n)
        policy = alike.publish()
        states = np.arange(policy.space.n_states)
        assert (policy.likeliest(states, np.zeros((0, 5))) == rule_table(policy.space)).all()


@pytest.mark.parametrize("rate", [1e-6, 0.1, 1.0])
def test_values_are_corrected_for_starting_at_zero(rate: float) -> None:
    """Constant rewards are found again whatever the step size and the number of visits."""
    rng = np.random.default_rng(0)
    visits = rng.integers(0, 30, (SPACE.n_states, N_ACTIONS)).astype(np.int32)
    level = 1.0 + 0.5 * ACTION_LEVELS[0]
    with np.errstate(divide="ignore"):  # log 0
        learned = -np.expm1(np.maximum(visits, 1) * np.log1p(-rate))
    q = np.where(visits > 0, level * learned, 0.0).astype(np.float32)
    rules = rule_table(SPACE)
    found = smooth(
        SPACE,
        Visited.of(q, visits, q),
        rules,
        learning_rate=rate,
        smoothing=Smoothing(foresight=1.0),
    )
    advantage = found.advantages(SPACE, rules)
    best = advantage.argmax(axis=1)
    assert (ACTION_LEVELS[0][best] == 2).all()


def test_counts_as_large_as_a_file_may_hold() -> None:
    q = np.zeros((SPACE.n_states, N_ACTIONS), np.float32)
    visits = np.zeros(q.shape, np.int32)
    q[5, 3], visits[5, 3], q[7, 2], visits[7, 2] = 3e38, 2**31 - 1, -3e38, 1
    rules = rule_table(SPACE)
    found = smooth(
        SPACE,
        Visited.of(q, visits, q),
        rules,
        learning_rate=RATE,
        smoothing=Smoothing(foresight=1.0),
    )
    assert np.isfinite(found.terms).all() and np.isfinite(found.residual).all()
    assert len(cautious_actions(found, SPACE, rules, 0.25)) == SPACE.n_states


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 10))
def test_caution_falls_with_interactions(fewer: int, more: int, caution: float) -> None:
    fewer, more = sorted((fewer, more))
    smoothing = Smoothing(caution)
    assert smoothing.caution_after(fewer) >= smoothing.caution_after(more) >= caution
    assert smoothing.caution_after(3000) == pytest.approx(4 * caution)


@pytest.mark.parametrize(
    "options",
    [
        {"caution": -0.1},
        {"caution": float("nan")},
        {"caution": float("inf")},
        {"shrinkage": 0.0},
        {"shrinkage": float("nan")},
        {"shrinkage": float("inf")},
        {"foresight": -0.1},
        {"foresight": 1.1},
        {"foresight": float("nan")},
        {"serving_bins": 2},
        {"serving_bins": 11},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Smoothing(**options)  # type: ignore[arg-type]
