"""The check of the sample ratio, against SciPy and against people who are assigned for real."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from recparams_rl.arms import ARMS, Split
from recparams_rl.evaluation.sample_ratio import (
    MISMATCH,
    chi_square,
    sample_ratio_p_value,
    survival,
)


@given(st.floats(0, 200), st.integers(1, 12))
def test_the_survival_function_is_that_of_chi_square(statistic: float, degrees: int) -> None:
    assert survival(statistic, degrees) == pytest.approx(stats.chi2.sf(statistic, degrees))


@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(1, 99)), min_size=2, max_size=4))
def test_p_values_are_those_of_pearsons_test(arms: list[tuple[int, int]]) -> None:
    counts, weights = ([arm[position] for arm in arms] for position in (0, 1))
    shares = [weight / sum(weights) for weight in weights]
    found = sample_ratio_p_value(counts, shares)
    assert 0 <= found <= 1
    if sum(counts):
        expected = [sum(counts) * share for share in shares]
        assert found == pytest.approx(stats.chisquare(counts, expected).pvalue, abs=1e-12)
    else:
        assert found == 1


def test_one_arm_cannot_mismatch() -> None:
    assert sample_ratio_p_value([7], [1.0]) == 1


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0]])
def test_every_arm_has_a_share(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="share"):
        chi_square([1, 2], shares)


def people_by_arm(split: Split, n: int) -> list[int]:
    arms = [split.arm(f"user-{number}") for number in range(n)]
    return [arms.count(arm) for arm in ARMS]


def test_people_who_are_assigned_as_promised_are_no_mismatch() -> None:
    p_values = []
    for number in range(200):
        split = Split(10, 20, f"salt {number}")
        p_values.append(
            sample_ratio_p_value(people_by_arm(split, 1000), list(split.shares().values()))
        )
    assert min(p_values) > MISMATCH
    # Uniform, as p-values are where nothing is wrong.
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_an_arm_that_loses_a_tenth_of_its_people_is_found() -> None:
    split = Split(50, 0, "salt")
    rl, previous, _ = people_by_arm(split, 10_000)
    assert sample_ratio_p_value([int(0.9 * rl), previous], [0.5, 0.5]) < MISMATCH
    assert sample_ratio_p_value([rl, previous], [0.5, 0.5]) > MISMATCH
