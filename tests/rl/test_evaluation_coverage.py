"""Intervals on simulated people: how often they hold the true value of a policy never served.

Each log is of people drawn anew, since a policy's value is over the population and not over those
who happened to be logged. The truth is that of 100 000 people, from exact mean rewards.
"""

from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.estimators import ESTIMATORS, rounds
from recparams_rl.evaluation.intervals import Estimate, difference, estimate
from recparams_rl.evaluation.reward_model import estimate_rewards
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.rules import rule_table
from recparams_rl.state import TIMES_OF_DAY, TRAITS, StateSpace
from recparams_simulation.people.population import (
    DAY,
    Population,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.simulator import expected_rewards, react

LOGS = 250
PEOPLE = 2500
EPSILON = 0.3
PEOPLE_OF_THE_TRUTH = 100_000

SPACE = StateSpace(bins=3)
WEIGHTS = RewardWeights()
START = 19_675 * DAY
HOUR_OF = {"morning": 8, "afternoon": 14, "evening": 19, "night": 23}
RULES = rule_table(SPACE)
DM, IPW, SNIPW, DR, SWITCH = ESTIMATORS


def states(population: Population, at: Situations) -> np.ndarray:
    return SPACE.index_columns(
        population.traits[at.person], at.content_type, at.mood, at.time_of_day
    )


def typical_rewards() -> np.ndarray:
    """Mean rewards of a person of average taste at the middle of each state, (n_states, 27)."""
    cell, context = np.divmod(np.arange(SPACE.n_states), SPACE.n_contexts)
    bins = np.unravel_index(np.arange(SPACE.n_cells), (SPACE.bins,) * len(TRAITS))
    n = SPACE.n_cells
    people = Population(
        traits=(np.stack(bins, axis=1) + 0.5) * 100 / SPACE.bins,
        tastes=np.zeros((n, 3, 3)),
        visits_per_week=np.ones(n),
        peak_hour=np.zeros(n),
        content_shares=np.ones((n, 3)) / 3,
        mood_logits=np.zeros((n, 8)),
    )
    content, mood, time = np.unravel_index(context, SPACE.context_shape)
    hour = np.array([HOUR_OF[name] for name in TIMES_OF_DAY])[time]
    return expected_rewards(people, Situations(cell, START + 3600 * hour, content, mood), WEIGHTS)


def target_policy() -> np.ndarray:
    """Greedy in a noisy copy of the mean rewards: good, not perfect, and far from the rules."""
    noise = np.random.default_rng(1).normal(0.0, 0.3, size=(SPACE.n_states, N_ACTIONS))
    return (typical_rewards() + noise).argmax(axis=1)


def true_values(*policies: np.ndarray) -> list[float]:
    """Mean reward of a visit under each policy, over a population that no log is of."""
    sums, visits, together = np.zeros(len(policies)), 0, 20_000
    for part in range(PEOPLE_OF_THE_TRUTH // together):
        rng = np.random.default_rng([10**6, part])
        population = draw_population(rng, together)
        at = draw_visits(rng, population, np.arange(together), START)
        state, exact = states(population, at), expected_rewards(population, at, WEIGHTS)
        sums += [exact[np.arange(len(at)), policy[state]].sum() for policy in policies]
        visits += len(at)
    return list(sums / visits)


@dataclass(frozen=True)
class Found:
    """Estimates of the target policy, and of its difference from the rules, on one log."""

    values: list[Estimate]
    differences: list[Estimate]


def evaluate_one_log(seed: int, target: np.ndarray) -> Found:
    """A week of new people under rules that explore, and what it says of the target policy."""
    rng = np.random.default_rng(seed)
    population = draw_population(rng, PEOPLE)
    at = draw_visits(rng, population, np.arange(PEOPLE), START)
    state, n = states(population, at), len(at)
    explores = rng.random(n) < EPSILON
    action = np.where(explores, rng.integers(0, N_ACTIONS, n), RULES[state]).astype(np.uint8)
    outcomes = react(rng, population, at, action)
    reward = rewards(WEIGHTS, outcomes.mask, outcomes.completion_rate, outcomes.mood_change)
    pscore = EPSILON / N_ACTIONS + (1.0 - EPSILON) * (action == RULES[state])

    estimated = estimate_rewards(SPACE, state, action, reward, at.person)
    ours, theirs = (
        rounds(reward, action, pscore, np.eye(N_ACTIONS)[policy[state]], estimated, at.person)
        for policy in (target, RULES)
    )
    return Found(
        [estimate(one, ours, rng=rng, resamples=100) for one in ESTIMATORS],
        [difference(one, ours, theirs) for one in ESTIMATORS],
    )


def evaluate_logs(target: np.ndarray) -> list[Found]:
    """All logs, in a process whose BLAS has one thread: on a busy machine two spin in vain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            one_log = partial(evaluate_one_log, target=target)
            return list(process.map(one_log, range(LOGS), chunksize=LOGS))


@dataclass(frozen=True)
class Trials:
    """All logs: the truth, estimates by name, and whether each interval holds the truth."""

    true_value: float
    values: dict[str, list[float]]
    covers: dict[tuple[str, str], list[bool]]
    refused: int

    def coverage(self, name: str, method: str) -> float:
        return float(np.mean(self.covers[name, method]))


@pytest.fixture(scope="module")
def trials() -> Trials:
    target = target_policy()
    of_target, of_rules = true_values(target, RULES)
    values, covers, refused = defaultdict(list), defaultdict(list), 0
    for found in evaluate_logs(target):
        refused += bool(found.values[0].reason)
        for truth, prefix, estimates in (
            (of_target, "", found.values),
            (of_target - of_rules, "difference, ", found.differences),
        ):
            for one in estimates:
                if not one.reason:
                    values[prefix + one.name].append(one.value)
                for interval in one.intervals:
                    covers[prefix + one.name, interval.method].append(
                        interval.low <= truth <= interval.high
                    )
    return Trials(of_target, values, covers, refused)


# tau lies above the largest weight, 90, so nothing is switched and there is no bias to allow for.
@pytest.mark.parametrize("method", ["normal", "bootstrap"])
@pytest.mark.parametrize("name", ["ipw", "snipw", "dr", "switch-dr"])
def test_intervals_of_a_value(trials: Trials, name: str, method: str) -> None:
    assert 0.90 <= trials.coverage(name, method) <= 0.99


@pytest.mark.parametrize("name", ["ipw", "snipw", "dr", "switch-dr"])
def test_paired_intervals_of_a_difference(trials: Trials, name: str) -> None:
    assert 0.90 <= trials.coverage(f"difference, {name}", "normal") <= 0.99


@pytest.mark.parametrize("name", ["ipw", "snipw", "dr", "switch-dr"])
def test_the_mean_of_many_estimates_is_the_truth(trials: Trials, name: str) -> None:
    values = trials.values[name]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - trials.true_value) < 3 * error


def test_the_model_and_the_weights_together_are_sharper_than_the_weights(trials: Trials) -> None:
    assert np.std(trials.values["dr"]) < 0.95 * np.std(trials.values["ipw"])


def test_the_direct_method_is_as_good_as_its_model(trials: Trials) -> None:
    """Its interval is of the sampling alone, and here never holds the truth."""
    assert trials.coverage("dm", "normal") < 0.05
    assert abs(np.mean(trials.values["dm"]) - trials.true_value) > 0.2


def test_a_policy_that_was_tried_is_rarely_refused(trials: Trials) -> None:
    assert trials.refused <= 0.02 * LOGS
