"""The simulator as a gymnasium environment: by gymnasium's own checks, and for outside agents."""

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers.vector import DictInfoToList

from recparams_rl.action import N_ACTIONS
from recparams_rl.state import StateSpace
from recparams_simulation.people.environment import NAME, Recommendation, RecommendationVector
from tests.support import ROOT


def test_gymnasium_checks_it() -> None:
    check_env(gymnasium.make(NAME).unwrapped)
    several = gymnasium.make_vec(NAME, num_envs=3, people=50)
    assert isinstance(several, RecommendationVector)
    observed, info = several.reset(seed=1)
    assert several.observation_space.contains(observed)
    assert info["regret"].shape == (3,) and not info["regret"].any()
    observed, reward, *_, info = several.step(np.array([0, 1, 2]))
    assert several.observation_space.contains(observed)
    assert reward.shape == info["regret"].shape == info["state"].shape == (3,)
    assert info["expected_rewards"].shape == (3, N_ACTIONS)
    assert gymnasium.make_vec(NAME, num_envs=2, vectorization_mode="sync", people=5).num_envs == 2


def test_many_at_a_time_are_as_one() -> None:
    """The first visit of either, from the same seed; and what gymnasium's wrappers make of it."""
    one = Recommendation(people=40)
    many = DictInfoToList(RecommendationVector(num_envs=1, people=40))
    for seed in range(10):
        (x, info), (xs, infos) = one.reset(seed=seed), many.reset(seed=seed)
        over = False
        for action in range(N_ACTIONS):
            assert np.array_equal(x, xs[0])
            for name, value in info.items():
                assert np.array_equal(value, infos[0][name]), name
            if over:
                break
            x, reward, over, truncated, info = one.step(action)
            xs, rewards, overs, truncations, infos = many.step(np.array([action]))
            assert (reward, over, truncated) == (rewards[0], overs[0], truncations[0])
        assert over


def test_a_visit_that_ended_is_followed_by_another() -> None:
    several = RecommendationVector(num_envs=20, people=30)
    x, info = several.reset(seed=2)
    over = np.zeros(20, dtype=bool)
    ends = 0
    for step in range(40):
        before, best = info, info["expected_rewards"].argmax(axis=1)
        action = np.where(np.arange(20) < 10, best, step % N_ACTIONS)
        following, reward, ended, _, info = several.step(action)
        # An ended visit is seen to its last moment; then an action is ignored.
        assert not ended[over].any()
        assert not reward[over].any() and not info["regret"][over].any()
        assert np.array_equal(following[ended], x[ended])
        means = before["expected_rewards"]
        lost = means.max(axis=1) - means[np.arange(20), action]
        assert np.array_equal(info["regret"], np.where(over, 0.0, lost))
        x, over = following, ended
        ends += np.count_nonzero(ended)
    assert ends > 100
    again = RecommendationVector(num_envs=20, people=30)
    again.reset(seed=1)
    assert np.array_equal(again.reset(seed=2)[0], several.reset(seed=2)[0])


@pytest.mark.parametrize("action", [-1, N_ACTIONS, 0.5])
def test_an_action_is_one_of_27(action: float) -> None:
    one = Recommendation(people=5)
    one.reset(seed=1)
    with pytest.raises(ValueError, match="an action must be from 0 to 26"):
        one.step(action)  # type: ignore[arg-type]
    several = RecommendationVector(num_envs=2, people=5)
    with pytest.raises(gymnasium.error.ResetNeeded):
        several.step(np.array([0, 0]))
    several.reset(seed=1)
    for wrong in ([0, action], [0], [0, 0, 0]):
        with pytest.raises(ValueError, match="an action must be from 0 to 26"):
            several.step(np.array(wrong))


def test_what_is_observed_is_the_state() -> None:
    env, space = Recommendation(people=200), StateSpace()
    lengths = []
    for seed in range(40):
        x, info = env.reset(seed=seed)
        assert info["regret"] == 0.0
        over, steps = False, 0
        while not over:
            words = [np.argmax(part) for part in np.split(x[5:], [3, 11])]
            context = int(np.ravel_multi_index(words, space.context_shape))
            cell = int(space.cells(x[None, :5] * 100.0)[0])
            assert info["state"] == cell * space.n_contexts + context
            best = int(info["expected_rewards"].argmax())
            x, _, over, truncated, info = env.step(best if steps % 2 else seed % N_ACTIONS)
            assert (info["regret"] == 0.0) == (steps % 2 == 1) or seed % N_ACTIONS == best
            assert not truncated
            steps += 1
        lengths.append(steps)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(0)
    assert max(lengths) > 3


def test_rewards_are_on_average_what_info_says() -> None:
    env = Recommendation(people=50, population_seed=3)
    differences = []
    env.reset(seed=5)
    rng = np.random.default_rng(6)
    for _ in range(3000):
        _, info = env.reset()
        action = int(rng.integers(N_ACTIONS))
        _, reward, *_ = env.step(action)
        differences.append(reward - info["expected_rewards"][action])
    error = np.std(differences) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 4 * error


def test_there_must_be_people() -> None:
    with pytest.raises(ValueError, match="people must be at least 1"):
        Recommendation(people=0)
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        RecommendationVector(num_envs=0)


def _visits(env: Any, decide: Any, seed: int, decisions: int) -> tuple[Any, Any, Any]:
    """What was observed, done and got in so many decisions; and mean regret."""
    xs, actions, rewards, regrets = [], [], [], []
    x, _ = env.reset(seed=seed)
    for _ in range(decisions):
        action = decide(x)
        xs.append(x)
        x, reward, over, _, info = env.step(action)
        actions.append(action)
        rewards.append(reward)
        regrets.append(info["regret"])
        if over:
            x, _ = env.reset()
    return np.array(xs), (actions, rewards), np.array(regrets)


def test_an_agent_from_outside_learns_in_it() -> None:
    """MABWiser's LinGreedy, from 3000 random decisions, judged on as many it has not seen."""
    # Two seconds, which every process that collects tests would spend.
    from mabwiser.mab import MAB, LearningPolicy

    env = gymnasium.make(NAME, people=500)
    rng = np.random.default_rng(7)

    def random(_: Any) -> int:
        return int(rng.integers(N_ACTIONS))

    xs, (actions, rewards), by_chance = _visits(env, random, 1, 3000)
    agent = MAB(list(range(N_ACTIONS)), LearningPolicy.LinGreedy(epsilon=0.0, l2_lambda=1.0))
    agent.fit(actions, rewards, xs)
    _, _, learned = _visits(env, lambda x: agent.predict(x[None]), 2, 1000)
    error = np.sqrt(by_chance.var() / len(by_chance) + learned.var() / len(learned))
    assert by_chance.mean() - learned.mean() > 10 * error


def test_the_document_is_true() -> None:
    text = (ROOT / "docs/algorithms/environment.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["info"].keys() == {"state", "expected_rewards", "regret"}
    assert names["infos"]["regret"].shape == (64,)
