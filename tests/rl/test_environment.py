"""The simulator as a gymnasium environment: by gymnasium's own checks, and for outside agents."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from mabwiser.mab import MAB, LearningPolicy

from rl.action import N_ACTIONS
from rl.state import StateSpace
from simulation.people.environment import NAME, Recommendation


def test_gymnasium_checks_it() -> None:
    check_env(gymnasium.make(NAME).unwrapped)
    several = gymnasium.make_vec(NAME, num_envs=3, people=50)
    observed, info = several.reset(seed=1)
    assert observed.shape == (3, 20)
    *_, info = several.step(np.array([0, 1, 2]))
    assert info["regret"].shape == (3,)


def test_what_is_observed_is_the_state() -> None:
    env, space = Recommendation(people=200), StateSpace()
    lengths = []
    for seed in range(40):
        x, info = env.reset(seed=seed)
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
