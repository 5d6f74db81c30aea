"""The reward model: against one dense regression, and how much of the rewards it explains."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from recparams_rl.action import ACTIONS, DIVERSITIES, ENERGIES, N_ACTIONS, NOVELTIES
from recparams_rl.evaluation import reward_model
from recparams_rl.evaluation.reward_model import RIDGE, estimate_rewards
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.rules import rule_table
from recparams_rl.state import StateSpace
from recparams_simulation.people.population import draw_population, draw_visits
from recparams_simulation.people.simulator import expected_rewards, react

SPACE = StateSpace(2, ("music", "game"), ("calm", "sad", "happy"), ("evening", "night"))
LEVELS = [
    (ENERGIES.index(a.energy), DIVERSITIES.index(a.diversity), NOVELTIES.index(a.novelty))
    for a in ACTIONS
]


@dataclass(frozen=True)
class Log:
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    cluster: np.ndarray

    def estimated(self, **options: float) -> np.ndarray:
        return estimate_rewards(
            SPACE,
            self.state,
            self.action,
            self.reward,
            self.cluster,
            **options,  # type: ignore[arg-type]
        )

    def __getitem__(self, rows: np.ndarray | slice) -> "Log":
        return Log(self.state[rows], self.action[rows], self.reward[rows], self.cluster[rows])


def log(n: int, seed: int = 0) -> Log:
    rng = np.random.default_rng(seed)
    return Log(
        rng.integers(0, SPACE.n_states, n, dtype=np.int32),
        rng.integers(0, N_ACTIONS, n, dtype=np.uint8),
        rng.normal(size=n).astype(np.float32),
        rng.integers(-(2**62), 2**62, max(n // 4, 1))[rng.integers(0, max(n // 4, 1), n)],
    )


def features(state: int) -> np.ndarray:
    """What a regression is given of a state, by name rather than by arithmetic."""
    bins, context = SPACE.decode(state)
    content = [context.content_type == name for name in SPACE.content_types]
    mood = [context.mood == name for name in SPACE.moods]
    time = [context.time_of_day == name for name in SPACE.times_of_day]
    midpoints = [(one + 0.5) * 2.0 / SPACE.bins - 1.0 for one in bins]
    return np.array([1.0, *midpoints, *content, *mood, *time, *np.outer(content, mood).ravel()])


def design(state: int, action: int) -> np.ndarray:
    chosen = np.concatenate([np.eye(3)[level] for level in LEVELS[action]])
    return np.outer(chosen, features(state)).ravel()


def regression(train: Log, state: int, ridge: float) -> np.ndarray:
    """Estimates of all actions in a state by one dense ridge regression."""
    x = np.array([design(*pair) for pair in zip(train.state, train.action, strict=True)])
    mean = train.reward.mean(dtype=np.float64)
    gram = x.T @ x + ridge * np.eye(x.shape[1])
    coefficients = np.linalg.solve(gram, x.T @ (train.reward - mean))
    return mean + np.array([design(state, action) @ coefficients for action in range(N_ACTIONS)])


def assigned(cluster: np.ndarray, folds: int) -> np.ndarray:
    """Folds, found from outside: whose estimates react to the rewards of whom."""
    people, person = np.unique(cluster, return_inverse=True)
    base = Log(
        np.zeros(len(people), dtype=np.int32),
        np.zeros(len(people), dtype=np.uint8),
        np.zeros(len(people)),
        people,
    )
    fold = np.full(len(people), -1)
    for one in range(folds):
        first = int(np.flatnonzero(fold < 0)[0])
        bump = replace(base, reward=np.eye(len(people))[first])
        fold[bump.estimated(folds=folds)[:, 0] == 0.0] = one
    return fold[person]


@pytest.mark.parametrize(("folds", "ridge", "chunk"), [(2, 0.5, 1 << 14), (3, RIDGE, 3)])
def test_it_equals_a_dense_regression_on_the_other_folds(
    folds: int, ridge: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_model, "_CHUNK", chunk)
    rows = log(300)
    rows = replace(rows, action=rows.action % 4)
    found = rows.estimated(folds=folds, ridge=ridge)
    assert found.shape == (300, N_ACTIONS)
    assert found.dtype == np.float32
    fold = assigned(rows.cluster, folds)
    assert set(fold.tolist()) == set(range(folds))
    for row in (0, 1, 2, 100, 299):
        expected = regression(rows[fold != fold[row]], int(rows.state[row]), ridge)
        assert found[row] == pytest.approx(expected, abs=1e-4)


def test_nobodys_own_rewards_count_for_them() -> None:
    rows = log(400)
    before = rows.estimated()
    for person in np.unique(rows.cluster)[:10]:
        own = rows.cluster == person
        after = replace(rows, reward=np.where(own, 100.0, rows.reward)).estimated()
        assert (after[own] == before[own]).all()
        assert (after[~own] != before[~own]).any()


def test_the_order_of_rows_does_not_matter() -> None:
    rows = log(500)
    order = np.random.default_rng(1).permutation(500)
    assert rows[order].estimated() == pytest.approx(rows.estimated()[order], abs=1e-5)


def test_folds_do_not_depend_on_who_else_there_is() -> None:
    people = np.arange(60)
    fold = assigned(people, 3)
    of_others = assigned(np.r_[people[::2], np.arange(1000, 1060)], 3)[:30]
    pairs = set(zip(fold[::2].tolist(), of_others.tolist(), strict=True))
    assert len(pairs) == 3
    assert min(np.bincount(fold)) > 10


def test_a_constant_on_all_rewards_comes_through() -> None:
    rows = log(300)
    shifted = replace(rows, reward=rows.reward + 5.0)
    assert shifted.estimated() == pytest.approx(rows.estimated() + 5.0, abs=1e-4)


def test_it_finds_what_it_can_express_also_of_actions_never_tried() -> None:
    """Levels are estimated, so what a combination of them brings need not have been seen."""
    rng = np.random.default_rng(2)
    truth = rng.normal(size=design(0, 0).size)
    rows = log(6000)
    rows = replace(rows, action=np.where(rows.action == 13, 12, rows.action))
    x = np.array([design(*pair) for pair in zip(rows.state, rows.action, strict=True)])
    found = replace(rows, reward=x @ truth).estimated(ridge=1e-3)
    for row in range(0, 6000, 500):
        expected = [design(int(rows.state[row]), action) @ truth for action in range(N_ACTIONS)]
        assert found[row] == pytest.approx(np.array(expected), abs=0.02)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_rows(n: int) -> None:
    rows = log(n)
    found = replace(rows, cluster=np.arange(n)).estimated()
    assert found.shape == (n, N_ACTIONS)
    assert np.isfinite(found).all()
    assert (np.abs(found) <= np.abs(rows.reward).max(initial=0.0) * 3).all()


def test_of_one_person_alone_nothing_is_known() -> None:
    assert (replace(log(50), cluster=np.full(50, 7)).estimated() == 0.0).all()


@pytest.mark.parametrize(
    ("column", "wrong", "message"),
    [
        ("state", np.array([0, -1], dtype=np.int32), "states must be"),
        ("state", np.array([0, SPACE.n_states], dtype=np.int32), "states must be"),
        ("action", np.array([0, 27], dtype=np.uint8), "states must be"),
    ],
)
def test_what_is_not_known(column: str, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(log(2), **{column: wrong}).estimated()


@pytest.mark.parametrize("options", [{"folds": 1}, {"ridge": 0.0}, {"ridge": float("nan")}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 2, ridge above 0"):
        log(2).estimated(**options)


def test_it_explains_half_of_what_can_be_explained() -> None:
    """R^2 on simulated people under exploration, against that of the exact mean rewards."""
    space, weights, rng = StateSpace(), RewardWeights(), np.random.default_rng(0)
    population = draw_population(rng, 6000)
    at = draw_visits(rng, population, np.arange(6000), 1_700_000_000)
    state = space.index_columns(
        population.traits[at.person], at.content_type, at.mood, at.time_of_day
    )
    n = len(at)
    explores = rng.random(n) < 0.3
    action = np.where(explores, rng.integers(0, N_ACTIONS, n), rule_table(space)[state])
    outcomes = react(rng, population, at, action)
    reward = rewards(weights, outcomes.mask, outcomes.completion_rate, outcomes.mood_change)
    found = estimate_rewards(space, state, action.astype(np.uint8), reward, at.person)

    def r2(estimated: np.ndarray) -> float:
        errors = reward - estimated[np.arange(n), action]
        return float(1.0 - np.mean(errors**2) / np.var(reward))

    assert r2(found) > 0.5 * r2(expected_rewards(population, at, weights)) > 0.15
