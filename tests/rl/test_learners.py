"""What is promised of every algorithm, whichever it is."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.base import Learner
from recparams_rl.learners.registry import LEARNERS, POLICIES, parameters_of, settings_of
from recparams_rl.packing import pack, unpack
from recparams_rl.policy import EXPLORATION
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

SPACE = StateSpace(bins=3)
DEEP = {"dqn", "actor_critic"}
ALGORITHMS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name in DEEP and not find_spec("torch"), reason="PyTorch is not installed: make deep"
        ),
    )
    for name in LEARNERS
]


def log(seed: int, n: int) -> Transitions:
    """Sorted by cell, with successors in the same cell."""
    rng = np.random.default_rng(seed)
    traits = rng.uniform(0, 100, (n, 5)).astype(np.float32)
    cell = SPACE.cells(traits)
    order = np.argsort(cell, kind="stable")
    context, following = rng.integers(SPACE.n_contexts, size=(2, n))
    next_state = np.where(rng.random(n) < 0.5, cell * SPACE.n_contexts + following, TERMINAL)
    action = rng.integers(N_ACTIONS, size=n)
    reward = (action // 9 == 2) + rng.normal(0, 0.5, n)
    state = cell * SPACE.n_contexts + context
    return Transitions(
        state.astype(np.int32),
        action.astype(np.uint8),
        reward.astype(np.float32),
        next_state.astype(np.int32),
        traits,
    )[order]


def new(algorithm: str, arrays: Any = None) -> Learner:
    quick = {"passes": 2.0, "least_steps": 1} if algorithm in DEEP else {}
    smoothing = Smoothing(serving_bins=0)
    return LEARNERS[algorithm](
        SPACE, settings_of(algorithm, quick), smoothing=smoothing, arrays=arrays
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_learned_is_a_policy(algorithm: str) -> None:
    t, found = log(1, 5000), new(algorithm)
    told: list[int] = []
    found.learn(t, on_progress=told.append)
    assert sum(told) == len(t)
    assert found.statistics().total_updates == len(t)
    policy = found.publish()
    assert isinstance(policy, LEARNERS[algorithm].policy_types)
    assert POLICIES[policy.kind] is type(policy)
    assert policy.needs_traits == LEARNERS[algorithm].needs_traits
    assert policy.epsilon == found.epsilon
    traits = np.asarray(t.traits)
    dist = policy.action_dist(t.state, traits)
    assert dist.shape == (len(t), N_ACTIONS)
    assert dist.dtype == np.float64
    assert (dist >= 0).all()
    np.testing.assert_allclose(dist.sum(axis=1), 1.0, rtol=1e-9)
    assert (policy.likeliest(t.state, traits) == dist.argmax(axis=1)).all()
    assert (policy.sources_of(t.state) < EXPLORATION).all()
    stored = type(policy).from_arrays(SPACE, policy.epsilon, unpack(pack(policy.arrays())))
    assert (stored.action_dist(t.state, traits) == dist).all()
    # As servers do, which explore by all that was trained.
    calmer = replace(policy, epsilon=0.01)  # type: ignore[type-var]
    assert calmer.epsilon == 0.01
    assert (calmer.action_dist(t.state, traits) == dist).all()
    assert pack(found.publishing(threads=2)().arrays()) == pack(policy.arrays())
    few = t.state[:50]
    candidate = found.publishing(few, threads=2)().action_dist(few, traits[:50])
    np.testing.assert_array_equal(candidate, dist[:50])
    # Of what was learned before, also when it is made later.
    before = found.publishing()
    found.learn(t)
    assert pack(before().arrays()) == pack(policy.arrays())
    # Better than chance, which gives a third of 1.
    energetic = dist[:, 18:].sum(axis=1).mean()
    assert energetic > 0.34 or algorithm == "ucb"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_going_on_from_arrays_is_going_on(algorithm: str) -> None:
    t = log(2, 3000)
    first = t.state < 100 * SPACE.n_contexts
    parts = t[first], t[~first]
    straight, stopped = new(algorithm), new(algorithm)
    for part in parts:
        straight.learn(part)
        stopped = new(algorithm, unpack(pack(stopped.arrays())))
        stopped.learn(part, threads=2)
    assert pack(stopped.arrays()) == pack(straight.arrays())
    assert pack(stopped.publish().arrays()) == pack(straight.publish().arrays())
    if algorithm not in DEEP:
        at_once = new(algorithm)
        at_once.learn(t)
        for name, array in at_once.arrays().items():
            np.testing.assert_allclose(straight.arrays()[name], array, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nothing_learned_is_a_policy_too(algorithm: str) -> None:
    found, t = new(algorithm), log(3, 40)
    found.learn(t[:0])
    assert found.statistics().total_updates == 0
    dist = found.publish().action_dist(t.state, np.asarray(t.traits))
    np.testing.assert_allclose(dist.sum(axis=1), 1.0, rtol=1e-9)


def test_settings_are_by_name() -> None:
    assert parameters_of("q_learning") == {}
    assert parameters_of("lin_ucb") == {"ridge": 30.0, "confidence": 1.0}
    assert settings_of("ucb", {"confidence": 1.5}).to_dict()["confidence"] == 1.5
    for algorithm, values, says in (
        ("sarsa", {}, "algorithm must be one of q_learning, "),
        ("q_learning", {"ridge": 1.0}, "ridge is no parameter of q_learning, which has none"),
        ("lin_ucb", {"draws": 1.0}, "draws is no parameter of lin_ucb, which has ridge"),
        ("lin_ucb", {"ridge": 0.0}, "ridge must be from"),
        ("lin_ts", {"draws": 2.5}, "draws must be a whole number"),
    ):
        with pytest.raises(ValueError, match=f"^{says}"):
            settings_of(algorithm, values)


@pytest.mark.parametrize("data", [b"", b"PK", b"nothing", pack({"a": np.zeros(3)})[:-8]])
def test_packed_arrays_that_are_none(data: bytes) -> None:
    with pytest.raises(ValueError, match="not packed arrays"):
        unpack(data)
