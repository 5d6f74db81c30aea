"""The linear bandits against least squares on the features themselves, written out."""

from typing import Any

import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.features import expansion, n_features, terms
from recparams_rl.learners.lin_ts import (
    LinearThompsonSampling,
    LinTsHyperparameters,
    SampledLinearPolicy,
)
from recparams_rl.learners.lin_ucb import LinearBoundPolicy, LinUcb, LinUcbHyperparameters
from recparams_rl.learners.linear import BLOCKS, LinearLearner
from recparams_rl.packing import pack, unpack
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

SPACE = StateSpace(
    content_types=("music", "game"), moods=("calm", "sad", "happy"), times_of_day=("night",)
)
RIDGE = 2.0


def log(seed: int, n: int) -> Transitions:
    rng = np.random.default_rng(seed)
    traits = rng.uniform(0, 100, (n, 5)).astype(np.float32)
    context = rng.integers(SPACE.n_contexts, size=n)
    state = (SPACE.cells(traits) * SPACE.n_contexts + context).astype(np.int32)
    action = rng.integers(N_ACTIONS, size=n).astype(np.uint8)
    reward = traits[:, 0] / 100 * (action % 3) + 0.3 * (context == 2) + rng.normal(0, 0.3, n)
    ends = np.full(n, TERMINAL, np.int32)
    return Transitions(state, action, reward.astype(np.float32), ends, traits)


def features(t: Transitions) -> Any:
    """f(x, a) of each row, (n, 10 k): the features once for each block of its action."""
    u = terms(t.traits)
    x = np.einsum("nt,ntk->nk", u, expansion(SPACE)[t.state % SPACE.n_contexts])
    return np.einsum("nb,nk->nbk", BLOCKS[t.action], x).reshape(len(t), -1)


def every_action(t: Transitions, row: int) -> Any:
    """f(x, a) of one row's state and every action, (27, 10 k)."""
    alike = t[np.full(N_ACTIONS, row)]
    return features(
        Transitions(
            alike.state,
            np.arange(N_ACTIONS, dtype=np.uint8),
            alike.reward,
            alike.next_state,
            alike.traits,
        )
    )


def learned(learner: type[LinearLearner], settings: Any, *parts: Transitions) -> Any:
    found = learner(SPACE, settings)
    for part in parts:
        found.learn(part)
    return found


def test_features_are_the_terms_and_the_words() -> None:
    t = log(1, 50)
    u = terms(t.traits)
    assert t.traits is not None
    np.testing.assert_allclose(u[:, 1:6], t.traits / 50.0 - 1.0, atol=1e-6)
    np.testing.assert_allclose(u[:, 6:], u[:, 1:6] ** 2)
    x = np.einsum("nt,ntk->nk", u, expansion(SPACE)[t.state % SPACE.n_contexts])
    assert x.shape[1] == n_features(SPACE) == 11 + 2 + 3 + 1 + 6 + 5 * (2 + 3)
    np.testing.assert_allclose(x[:, :11], u)
    # One content type, one mood, one time and one pair; and each score twice.
    assert (x[:, 11:23].sum(axis=1) == 4).all()
    np.testing.assert_allclose(x[:, 23:].sum(axis=1), 2 * u[:, 1:6].sum(axis=1), atol=1e-9)


def test_the_posterior_is_ridge_regressions() -> None:
    t = log(2, 900)
    found = learned(LinUcb, LinUcbHyperparameters(ridge=RIDGE), t).posterior()
    f, r = features(t), t.reward.astype(np.float64)
    precision = f.T @ f + RIDGE * np.eye(f.shape[1])
    np.testing.assert_allclose(found.inverse, np.linalg.inv(precision), atol=1e-8)
    mean = np.linalg.solve(precision, f.T @ r)
    np.testing.assert_allclose(found.mean, mean, atol=1e-8)
    left = r @ r - (f.T @ r) @ mean
    assert found.variance == pytest.approx((left + 1) / (len(r) + 1))


def test_batches_in_any_order_are_one() -> None:
    t = log(3, 600)
    settings = LinUcbHyperparameters(ridge=RIDGE)
    whole = learned(LinUcb, settings, t)
    parts = learned(LinUcb, settings, t[400:], t[:150], t[150:400])
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(parts.arrays()[name], array, atol=1e-9)
    before = unpack(pack(learned(LinUcb, settings, t[:150]).arrays()))
    stopped = LinUcb(SPACE, settings, arrays=before)
    stopped.learn(t[150:])
    again = learned(LinUcb, settings, t[:150], t[150:])
    assert pack(stopped.arrays()) == pack(again.arrays())
    assert stopped.statistics().total_updates == 600


@pytest.mark.parametrize("confidence", [0.0, 1.0, 3.0])
def test_lin_ucb_takes_the_highest_bound(confidence: float) -> None:
    t, new = log(4, 500), log(5, 60)
    found = learned(LinUcb, LinUcbHyperparameters(ridge=RIDGE, confidence=confidence), t)
    posterior, policy = found.posterior(), found.publish()
    assert isinstance(policy, LinearBoundPolicy)
    assert new.traits is not None
    dist = policy.action_dist(new.state, new.traits)
    assert (dist.max(axis=1) == 1.0).all()
    assert (dist.sum(axis=1) == 1.0).all()
    for row in range(len(new)):
        f = every_action(new, row)
        spread = np.einsum("ad,de,ae->a", f, posterior.inverse, f)
        bound = f @ posterior.mean + confidence * np.sqrt(posterior.variance * spread)
        # float32 may swap equals.
        assert bound[dist[row].argmax()] == pytest.approx(bound.max(), abs=1e-4)


def test_lin_ts_propensities_are_the_shares_of_its_samples() -> None:
    t, new = log(6, 400), log(7, 40)
    found = learned(LinearThompsonSampling, LinTsHyperparameters(ridge=RIDGE, draws=512), t)
    policy = found.publish()
    assert isinstance(policy, SampledLinearPolicy)
    assert new.traits is not None
    dist = policy.action_dist(new.state, new.traits)
    np.testing.assert_allclose(dist.sum(axis=1), 1.0)
    np.testing.assert_allclose(dist * 512, np.rint(dist * 512), atol=1e-9)
    # The chance of being the best under the posterior itself, by other draws of it.
    posterior = found.posterior()
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(posterior.inverse * posterior.variance)
    draws = posterior.mean + rng.standard_normal((4000, len(posterior.mean))) @ root.T
    for row in range(len(new)):
        best = (draws @ every_action(new, row).T).argmax(axis=1)
        shares = np.bincount(best, minlength=N_ACTIONS) / len(best)
        error = np.sqrt(shares * (1 - shares) * (1 / 512 + 1 / 4000)) + 0.005
        assert (np.abs(shares - dist[row]) < 5 * error).all()
    assert pack(found.publish().arrays()) == pack(policy.arrays())


def test_no_spread_is_greedy() -> None:
    t = log(8, 400)
    sampled = learned(LinearThompsonSampling, LinTsHyperparameters(ridge=RIDGE, spread=0.0), t)
    bound = learned(LinUcb, LinUcbHyperparameters(ridge=RIDGE, confidence=0.0), t)
    one, other = (found.publish().action_dist(t.state, t.traits) for found in (sampled, bound))
    assert (one == other).mean() > 0.999


@pytest.mark.parametrize("learner", [LinUcb, LinearThompsonSampling])
def test_what_does_not_fit_is_refused(learner: type[LinearLearner]) -> None:
    t = log(9, 50)
    found = learned(learner, learner.Settings(), t)
    arrays = found.arrays()
    with pytest.raises(ValueError, match="products must be float64"):
        learner(SPACE, learner.Settings(), arrays={**arrays, "products": np.zeros(3)})
    with pytest.raises(ValueError, match="transitions must have traits"):
        found.learn(Transitions(t.state, t.action, t.reward, t.next_state))
    policy: Any = found.publish()
    for name, array in policy.arrays().items():
        for wrong in (array[..., :-1], array.astype(np.float64), np.full_like(array, np.nan)):
            with pytest.raises(ValueError, match="must be finite float32"):
                type(policy).from_arrays(SPACE, 0.0, {**policy.arrays(), name: wrong})
    found.products[0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        found.publish()
