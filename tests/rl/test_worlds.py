"""Correctness held by outside worlds: gymnasium's tables, and bandits with a known bound."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners import double_q_learning, expected_sarsa, q_learning
from recparams_rl.learners.lin_ts import LinearThompsonSampling, LinTsHyperparameters
from recparams_rl.learners.lin_ucb import LinUcb, LinUcbHyperparameters
from recparams_rl.learners.linear import LinearLearner
from recparams_rl.learners.ucb import choose
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

Learn = Callable[[int, int, Transitions, list[float]], Any]
DISCOUNT = 0.95


def _q_learning(states: int, actions: int, log: Transitions, rates: list[float]) -> Any:
    q, visits = np.zeros((states, actions), np.float32), np.zeros((states, actions), np.int32)
    for rate in rates:
        q_learning.update(q, visits, *_columns(log), np.float32(rate), np.float32(DISCOUNT))
    return q


def _expected_sarsa(states: int, actions: int, log: Transitions, rates: list[float]) -> Any:
    q, visits = np.zeros((states, actions), np.float32), np.zeros((states, actions), np.int32)
    for rate in rates:
        given = *_columns(log), np.float32(rate), np.float32(DISCOUNT), np.float32(0.0)
        expected_sarsa.update(q, visits, *given)
    return q


def _double_q_learning(states: int, actions: int, log: Transitions, rates: list[float]) -> Any:
    q = np.zeros((2, states, actions), np.float32)
    counts = np.zeros(q.shape, np.int32)
    for rate in rates:
        given = *_columns(log), np.float32(rate), np.float32(DISCOUNT)
        double_q_learning.update(q, counts, *given)
    return q.mean(axis=0)


def _columns(log: Transitions) -> tuple[Any, ...]:
    return log.state, log.action, log.reward, log.next_state


LEARNERS: list[Learn] = [_q_learning, _expected_sarsa, _double_q_learning]


class World:
    """A gymnasium world whose model is known: probabilities, rewards, and what ends it."""

    def __init__(self, name: str, **options: object) -> None:
        env: Any = gymnasium.make(name, **options).unwrapped
        self.states, self.actions = int(env.observation_space.n), int(env.action_space.n)
        self.model: Any = env.P
        self.chance = np.zeros((self.states, self.actions, self.states))
        self.reward = np.zeros((self.states, self.actions))
        for s in range(self.states):
            for a in range(self.actions):
                for p, following, reward, ends in self.model[s][a]:
                    self.reward[s, a] += p * reward
                    self.chance[s, a, following] += p * (not ends)

    def optimum(self) -> Any:
        """Values of states under the best policy, by value iteration until they stay."""
        value = np.zeros(self.states)
        for _ in range(2000):
            before, value = value, (self.reward + DISCOUNT * self.chance @ value).max(axis=1)
            if np.array_equal(before, value):
                break
        return value

    def value(self, policy: Any) -> Any:
        """Values of states under one action a state, exactly."""
        rows = np.arange(self.states)
        system = np.eye(self.states) - DISCOUNT * self.chance[rows, policy]
        return np.linalg.solve(system, self.reward[rows, policy])

    def log(self, rng: np.random.Generator, times: int) -> Transitions:
        """Every pair so many times, in random order, as the world answers it."""
        pairs = rng.permutation(np.repeat(np.arange(self.states * self.actions), times))
        state, action = pairs // self.actions, pairs % self.actions
        reward, following = np.empty(len(pairs), np.float32), np.empty(len(pairs), np.int32)
        for i, (s, a) in enumerate(zip(state.tolist(), action.tolist(), strict=True)):
            answers = self.model[s][a]
            which = 0
            if len(answers) > 1:
                which = int(rng.choice(len(answers), p=[answer[0] for answer in answers]))
            _, next_state, reward[i], ends = answers[which]
            following[i] = TERMINAL if ends else next_state
        return Transitions(state.astype(np.int32), action.astype(np.uint8), reward, following)


@pytest.mark.parametrize("learn", LEARNERS)
@pytest.mark.parametrize("name", ["CliffWalking-v1", "Taxi-v4"])
def test_the_optimum_of_a_world_without_chance_is_reached_exactly(name: str, learn: Learn) -> None:
    world = World(name)
    log = world.log(np.random.default_rng(1), 4)
    # A step of 1 is right where an action always leads to the same.
    q = learn(world.states, world.actions, log, [1.0] * 40)
    optimum = world.optimum()
    np.testing.assert_allclose(world.value(q.argmax(axis=1)), optimum, atol=1e-6)
    np.testing.assert_allclose(q.max(axis=1), optimum, atol=1e-4)


@pytest.mark.parametrize("learn", LEARNERS)
def test_the_optimum_of_a_slippery_lake_is_reached(learn: Learn) -> None:
    world = World("FrozenLake-v1", is_slippery=True)
    log = world.log(np.random.default_rng(2), 3000)
    q = learn(world.states, world.actions, log, [0.5, 0.1, 0.02, 0.005, 0.001])
    optimum = world.optimum()
    found = world.value(q.argmax(axis=1))
    assert optimum[0] > 0.15
    assert (found <= optimum + 1e-9).all()
    np.testing.assert_allclose(found, optimum, atol=0.01)


def test_ucb_stays_below_its_bound_and_grows_with_the_logarithm() -> None:
    """UCB1, Theorem 1 of Auer et al. (2002), on 200 bandits at once, each a row of the table."""
    means = np.array([0.9, 0.5, 0.3, 0.2, 0.1])
    rng, rounds, bandits = np.random.default_rng(3), 10_000, 200
    rows = np.arange(bandits)
    totals = np.zeros((bandits, len(means)))
    visits = np.zeros(totals.shape, np.int32)
    at = {}
    for n in range(1, rounds + 1):
        q = np.divide(totals, visits, out=np.zeros_like(totals), where=visits > 0)
        action = choose(q.astype(np.float32), visits, np.sqrt(2.0))
        totals[rows, action] += rng.random(bandits) < means[action]
        visits[rows, action] += 1
        if n in (100, 1000, 10_000):
            at[n] = float((visits @ (means.max() - means)).mean())
    gaps = means.max() - means[1:]
    for n, regret in at.items():
        assert regret <= 8 * (np.log(n) / gaps).sum() + (1 + np.pi**2 / 3) * gaps.sum()
    # With the logarithm both increments are alike; in proportion the second were ten times as much.
    assert (at[10_000] - at[1000]) < 2 * (at[1000] - at[100])
    # No policy that is good everywhere does better than Lai & Robbins (1985) in the long run.
    p, best = means[1:], means[0]
    divergence = p * np.log(p / best) + (1 - p) * np.log((1 - p) / (1 - best))
    assert (at[10_000] - at[1000]) > 0.5 * (gaps / divergence).sum() * np.log(10)


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        (LinearThompsonSampling, LinTsHyperparameters(ridge=1.0)),
        (LinUcb, LinUcbHyperparameters(ridge=1.0, confidence=2.0)),
    ],
)
def test_linear_bandits_stop_paying_for_what_they_know(
    learner: type[LinearLearner], settings: Any
) -> None:
    """27 Bernoulli arms whose means add up by level; one context; a version every 20 rounds."""
    space = StateSpace(bins=1, content_types=("music",), moods=("calm",), times_of_day=("night",))
    levels = np.array([[0.0, 0.1, 0.25], [0.0, 0.2, 0.05], [0.15, 0.0, 0.05]])
    means = (
        0.2
        + (levels[0][:, None, None] + levels[1][None, :, None] + levels[2][None, None, :]).ravel()
    )
    increments = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        found = learner(space, settings)
        regret, at = 0.0, {}
        for n in range(20, 4001, 20):
            traits, state = np.full((20, 5), 50.0, np.float32), np.zeros(20, np.int32)
            dist = found.publish().action_dist(state[:1], traits[:1])[0]
            action = rng.choice(N_ACTIONS, size=20, p=dist)
            regret += float((means.max() - means[action]).sum())
            reward = (rng.random(20) < means[action]).astype(np.float32)
            ends = np.full(20, TERMINAL, np.int32)
            found.learn(Transitions(state, action.astype(np.uint8), reward, ends, traits))
            at[n] = regret
        increments.append((at[400] - at[40], at[4000] - at[400], regret))
    early, late, total = np.mean(increments, axis=0)
    # In proportion the later increment were ten times the earlier one.
    assert late < 2.5 * early, (early, late)
    assert total < 0.2 * 4000 * (means.max() - means.mean())
