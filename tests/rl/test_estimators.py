"""Off-policy estimators: closed forms worked by hand, and what must not matter."""

from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_rl.evaluation.estimators import (
    ESTIMATORS,
    DoublyRobust,
    Estimator,
    Floats,
    InverseProbabilityWeighting,
    Rounds,
    SwitchDoublyRobust,
    rounds,
)

DM, IPW, SNIPW, DR, SWITCH = ESTIMATORS


@dataclass(frozen=True)
class Log:
    """Arguments of `rounds`, and the behaviour policy."""

    reward: Floats
    action: np.ndarray
    pscore: Floats
    action_dist: Floats
    estimated_rewards: Floats
    cluster: np.ndarray
    behaviour: Floats

    def rounds(self) -> Rounds:
        return rounds(
            self.reward,
            self.action,
            self.pscore,
            self.action_dist,
            self.estimated_rewards,
            self.cluster,
        )


# Weights 2, 3, 1, 0; estimates of the logged actions 0.5, -1, 1, 2; of the policy 0.5, -0.5, 0.5, 1
BY_HAND = Log(
    reward=np.array([1.0, 0.0, 2.0, -1.0]),
    action=np.array([0, 1, 1, 0]),
    pscore=np.array([0.5, 0.25, 0.5, 1.0]),
    action_dist=np.array([[1.0, 0.0], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0]]),
    estimated_rewards=np.array([[0.5, 0.0], [1.0, -1.0], [0.0, 1.0], [2.0, 1.0]]),
    cluster=np.array([7, 7, 8, 9]),
    behaviour=np.array([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]),
)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Logs of a stochastic behaviour policy as several people see it; every weight is above 0."""
    n, n_actions = draw(st.integers(1, 12)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    behaviour, target = rng.dirichlet(np.ones(n_actions), size=(2, n)) * 0.9 + 0.1 / n_actions
    action = np.array([rng.choice(n_actions, p=row) for row in behaviour])
    return Log(
        reward=rng.normal(size=n),
        action=action,
        pscore=behaviour[np.arange(n), action],
        action_dist=target,
        estimated_rewards=rng.normal(size=(n, n_actions)),
        cluster=rng.integers(0, 5, size=n),
        behaviour=behaviour,
    )


def value(estimator: Estimator, log: Log) -> float:
    return estimator.influence(log.rounds())[0]


def same(expected: float) -> object:
    return pytest.approx(expected, rel=1e-9, abs=1e-9)


every = pytest.mark.parametrize(
    "estimator",
    [
        *ESTIMATORS,
        InverseProbabilityWeighting(1.5, "ipw, clipped"),
        DoublyRobust(1.5, "dr, clipped"),
        SwitchDoublyRobust(1.0, "switch-dr, switching"),
    ],
    ids=lambda one: one.name,
)


@pytest.mark.parametrize(
    ("estimator", "by_hand", "terms"),
    [
        (DM, 0.375, [0.5, -0.5, 0.5, 1.0]),
        (IPW, 1.0, [2.0, 0.0, 2.0, 0.0]),
        (InverseProbabilityWeighting(1.5), 0.875, [1.5, 0.0, 2.0, 0.0]),
        (SNIPW, 2 / 3, [10 / 9, -2 / 3, 14 / 9, 2 / 3]),
        (DR, 1.625, [1.5, 2.5, 1.5, 1.0]),
        (DoublyRobust(1.5), 1.1875, [1.25, 1.0, 1.5, 1.0]),
        (SWITCH, 1.625, [1.5, 2.5, 1.5, 1.0]),
        (SwitchDoublyRobust(2.0), 0.875, [1.5, -0.5, 1.5, 1.0]),
    ],
)
def test_by_hand(estimator: Estimator, by_hand: float, terms: list[float]) -> None:
    found, influence = estimator.influence(BY_HAND.rounds())
    assert found == same(by_hand)
    assert influence == pytest.approx(np.array(terms))


def test_rounds_by_hand() -> None:
    seen = BY_HAND.rounds()
    assert seen.weight.tolist() == [2.0, 3.0, 1.0, 0.0]
    assert seen.estimated.tolist() == [0.5, -1.0, 1.0, 2.0]
    assert seen.direct.tolist() == [0.5, -0.5, 0.5, 1.0]
    assert seen.cluster.tolist() == [7, 7, 8, 9]
    assert len(seen) == 4
    some = seen[seen.cluster != 7]
    assert len(some) == 2
    assert some.weight.tolist() == [1.0, 0.0]
    assert some.reward.tolist() == [2.0, -1.0]
    assert some.estimated.tolist() == [1.0, 2.0]
    assert some.direct.tolist() == [0.5, 1.0]
    assert some.cluster.tolist() == [8, 9]


def test_rounds_are_float64_whatever_comes_in() -> None:
    log = BY_HAND
    seen = rounds(
        log.reward.astype(np.float32),
        log.action.astype(np.uint8),
        log.pscore.astype(np.float32),
        log.action_dist.astype(np.float32),
        log.estimated_rewards.astype(np.float32),
    )
    columns = (seen.weight, seen.reward, seen.estimated, seen.direct)
    assert {column.dtype for column in columns} == {np.dtype(np.float64)}
    assert seen.cluster.tolist() == [0, 1, 2, 3]
    assert seen.cluster.dtype == np.int64


def test_the_names() -> None:
    assert [one.name for one in ESTIMATORS] == ["dm", "ipw", "snipw", "dr", "switch-dr"]


@every
@given(logs())
def test_the_value_is_the_mean_of_the_terms(estimator: Estimator, log: Log) -> None:
    found, terms = estimator.influence(log.rounds())
    assert terms.shape == log.reward.shape
    assert found == same(terms.mean())


@every
@given(logs(), st.randoms())
def test_the_order_of_rounds_does_not_matter(
    estimator: Estimator, log: Log, random: object
) -> None:
    order = np.arange(len(log.reward))
    random.shuffle(order)  # type: ignore[attr-defined]
    found, terms = estimator.influence(log.rounds())
    shuffled, shuffled_terms = estimator.influence(log.rounds()[order])
    assert shuffled == same(found)
    assert shuffled_terms == pytest.approx(terms[order])


@every
@given(logs(), st.integers(0, 2**32))
def test_the_numbers_of_actions_do_not_matter(estimator: Estimator, log: Log, seed: int) -> None:
    was = np.random.default_rng(seed).permutation(log.action_dist.shape[1])
    renamed = replace(
        log,
        action=np.argsort(was)[log.action],
        action_dist=log.action_dist[:, was],
        estimated_rewards=log.estimated_rewards[:, was],
    )
    assert value(estimator, renamed) == same(value(estimator, log))


@every
@given(logs(), st.floats(-10, 10))
def test_rewards_in_other_units(estimator: Estimator, log: Log, factor: float) -> None:
    scaled = replace(
        log, reward=factor * log.reward, estimated_rewards=factor * log.estimated_rewards
    )
    assert value(estimator, scaled) == same(factor * value(estimator, log))


@every
@given(logs(), st.floats(-10, 10))
def test_a_constant_on_all_rewards(estimator: Estimator, log: Log, constant: float) -> None:
    """It comes through, but in IPW times the mean weight."""
    shifted = replace(
        log, reward=log.reward + constant, estimated_rewards=log.estimated_rewards + constant
    )
    factor = 1.0
    if isinstance(estimator, InverseProbabilityWeighting):
        factor = float(np.minimum(log.rounds().weight, estimator.lambda_).mean())
    assert value(estimator, shifted) == same(value(estimator, log) + factor * constant)


@given(logs())
def test_the_behaviour_policy_is_worth_the_mean_reward(log: Log) -> None:
    """Of a model that tells actions apart, DR adds what it thinks of the luck of the draw."""
    served = replace(log, action_dist=log.behaviour)
    assert value(IPW, served) == same(log.reward.mean())
    assert value(SNIPW, served) == same(log.reward.mean())
    blind = replace(
        served,
        estimated_rewards=np.repeat(log.estimated_rewards[:, :1], served.action_dist.shape[1], 1),
    )
    assert value(DR, blind) == same(log.reward.mean())
    luck = served.rounds()
    assert value(DR, served) == same((log.reward + luck.direct - luck.estimated).mean())


@given(logs())
def test_a_model_that_is_right_needs_no_correction(log: Log) -> None:
    right = log.estimated_rewards[np.arange(len(log.action)), log.action]
    for estimator in (DR, DoublyRobust(1.5), SWITCH):
        assert value(estimator, replace(log, reward=right)) == same(value(DM, log))


@given(logs())
def test_a_model_that_knows_nothing_leaves_ipw(log: Log) -> None:
    ignorant = replace(log, estimated_rewards=np.zeros_like(log.estimated_rewards))
    assert value(DR, ignorant) == same(value(IPW, log))


@given(logs())
def test_limits_of_clipping_and_switching(log: Log) -> None:
    assert value(InverseProbabilityWeighting(1e9), log) == value(IPW, log)
    assert value(DoublyRobust(1e9), log) == value(DR, log)
    assert value(SwitchDoublyRobust(0.0), log) == same(value(DM, log))
    assert value(SwitchDoublyRobust(inf), log) == value(DR, log)


@given(logs())
def test_only_the_direct_method_ignores_rewards(log: Log) -> None:
    other = replace(log, reward=log.reward + 1.0)
    assert value(DM, other) == value(DM, log)
    for estimator in (IPW, SNIPW, DR, SWITCH):
        assert value(estimator, other) > value(estimator, log)


def test_a_weight_of_exactly_tau_is_trusted() -> None:
    assert value(SwitchDoublyRobust(3.0), BY_HAND) == same(value(DR, BY_HAND))


@pytest.mark.parametrize("wrong", [0.0, -1.0, nan])
def test_a_lambda_has_to_be_above_0(wrong: float) -> None:
    for estimator in (InverseProbabilityWeighting, DoublyRobust):
        with pytest.raises(ValueError, match="lambda_ must be above 0"):
            estimator(wrong)


@pytest.mark.parametrize("wrong", [-1e-9, nan])
def test_a_tau_has_to_be_at_least_0(wrong: float) -> None:
    with pytest.raises(ValueError, match="tau must be at least 0"):
        SwitchDoublyRobust(wrong)


def changed(column: np.ndarray, value: float) -> np.ndarray:
    other = column.copy()
    other.flat[0] = value
    return other


@pytest.mark.parametrize(
    ("column", "wrong", "message"),
    [
        ("reward", BY_HAND.reward[:3], "^action must be"),
        ("reward", BY_HAND.reward[:, None], "^reward must be"),
        ("reward", changed(BY_HAND.reward, nan), "finite"),
        ("reward", changed(BY_HAND.reward, inf), "finite"),
        ("action", BY_HAND.action[:3], "^action must be"),
        ("action", BY_HAND.action.astype(float), "^action must be"),
        ("action", changed(BY_HAND.action, 2), "from 0 to 1"),
        ("action", changed(BY_HAND.action, -1), "from 0 to 1"),
        ("pscore", BY_HAND.pscore[:3], "^pscore must be"),
        ("pscore", changed(BY_HAND.pscore, 0.0), "pscore must be above 0"),
        ("pscore", changed(BY_HAND.pscore, -0.5), "pscore must be above 0"),
        ("pscore", changed(BY_HAND.pscore, 1.0001), "pscore must be above 0"),
        ("pscore", changed(BY_HAND.pscore, nan), "pscore must be above 0"),
        ("action_dist", np.float64(1.0), "^action_dist must be"),
        ("action_dist", BY_HAND.action_dist[0], "^action_dist must be"),
        ("action_dist", BY_HAND.action_dist[:3], "^action_dist must be"),
        ("action_dist", BY_HAND.action_dist[:, :1], "^estimated_rewards must be"),
        ("action_dist", BY_HAND.action_dist * (1 + 2e-6), "sum to 1"),
        ("action_dist", changed(BY_HAND.action_dist, nan), "sum to 1"),
        ("action_dist", np.add(BY_HAND.action_dist, [0.5, -0.5]), "sum to 1"),
        ("estimated_rewards", BY_HAND.estimated_rewards[:, 0], "^estimated_rewards must be"),
        ("estimated_rewards", changed(BY_HAND.estimated_rewards, nan), "finite"),
        ("cluster", BY_HAND.cluster[:3], "^cluster must be"),
        ("cluster", BY_HAND.cluster.astype(float), "^cluster must be"),
    ],
)
def test_bad_arrays(column: str, wrong: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BY_HAND, **{column: wrong}).rounds()


def test_sums_may_be_off_by_the_rounding_of_float32() -> None:
    nearly = replace(BY_HAND, action_dist=BY_HAND.action_dist * (1 - 5e-7))
    assert value(IPW, nearly) == pytest.approx(1.0, rel=1e-6)
