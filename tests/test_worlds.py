"""Kinds of worlds: what the rules are worth in each, and that the usual one stays as it was."""

import hashlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.rules import rule_table
from recparams_rl.state import TRAITS, StateSpace
from recparams_simulation.compare.logs import Log, simulate
from recparams_simulation.compare.measure import Plan, draw_held_out, draw_logs, trials
from recparams_simulation.compare.systems import RulesSystem
from recparams_simulation.people.population import (
    Population,
    Situations,
    draw_population,
    draw_tastes,
    draw_visits,
)
from recparams_simulation.people.preferences import CONTEXT_SHAPE, OWN, World
from recparams_simulation.people.simulator import expected_rewards, react
from recparams_simulation.people.traits import TRAIT_MEANS, TRAIT_SDS
from recparams_simulation.people.worlds import KINDS, Jumps, draw_world

SPACE = StateSpace()
RULES = rule_table(SPACE)
START = 1_700_000_000
SEEDS = range(3)


def people_of(world: World, seed: int = 1, n: int = 1500) -> tuple[Population, Situations]:
    """Returns people of a world and the beginnings of their visits of a week."""
    rng = np.random.default_rng(seed)
    people = draw_population(rng, n, world)
    return people, draw_visits(rng, people, np.arange(n), START)


@dataclass(frozen=True)
class Worth:
    """Mean exact rewards in a world, and how often the rules' action is the best."""

    rules: float
    random: float
    best: float
    without_taste: float
    rules_are_best: float


@cache
def worth(kind: str, seed: int) -> Worth:
    people, at = people_of(draw_world(kind, seed))
    mean = expected_rewards(people, at, RewardWeights())
    typical = replace(people, tastes=np.zeros_like(people.tastes))
    visible = expected_rewards(typical, at, RewardWeights()).argmax(axis=1)
    row = np.arange(len(at))
    rules = RULES[SPACE.index_columns(people.traits[at.person], *at.context)]
    return Worth(
        rules=mean[row, rules].mean(),
        random=mean.mean(),
        best=mean.max(axis=1).mean(),
        without_taste=mean[row, visible].mean(),
        rules_are_best=(mean.argmax(axis=1) == rules).mean(),
    )


def digest(*columns: ArrayLike) -> str:
    """Returns a digest of columns to six decimals: the last bits are the machine's."""
    rounded = (np.rint(np.asarray(column, np.float64) * 1e6) for column in columns)
    whole = b"".join(column.astype(np.int64).tobytes() for column in rounded)
    return hashlib.sha256(whole).hexdigest()[:16]


def columns_of(log: Log) -> list[np.ndarray]:
    return [*vars(log.at).values(), *(c for name, c in vars(log).items() if name != "at")]


def test_the_usual_world_is_as_it_was_before_there_were_others() -> None:
    rng = np.random.default_rng(5)
    log = simulate(rng, draw_population(rng, 300), 2000)
    assert digest(*columns_of(log)) == "41e1fdbfe5e16a31"
    held_out = draw_held_out(rng, Plan(sizes=(100,), seeds=1, held_out=500, visits=50))
    assert digest(held_out.mean, *vars(held_out.visits).values()) == "32b14345b4962270"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_rewards_are_of_a_size_in_all_worlds(kind: str, seed: int) -> None:
    found = worth(kind, seed)
    assert -0.2 < found.random < 0.05
    assert 0.9 < found.best < 1.6
    # Most of the best is in what a learner can see.
    assert found.best - found.without_taste < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_rules_are_worth(seed: int) -> None:
    own, jumps, useless, good, random = (worth(kind, seed) for kind in KINDS)
    assert own.random + 0.4 < own.rules < own.best - 0.6
    assert jumps.random + 0.1 < jumps.rules < jumps.best - 0.6
    assert abs(useless.rules - useless.random) < 0.1
    assert useless.rules_are_best < 0.07
    assert 0.0 < good.best - good.rules < 0.03
    assert good.rules_are_best > 0.85
    assert abs(random.rules - random.random) < 0.3


def test_tastes_jump_and_only_there() -> None:
    """Utilities change where a trait passes a threshold, and nowhere between."""
    world = draw_world("jumps", 0)
    assert isinstance(world, Jumps)
    cuts = np.sort(TRAIT_MEANS[0] + TRAIT_SDS[0] * world.thresholds[:2])
    scores = np.array([0.0, cuts[0] - 0.01, cuts[0] + 0.01, cuts[1] - 0.01, cuts[1] + 0.01, 100.0])
    traits = np.tile(TRAIT_MEANS, (len(scores), 1))
    traits[:, TRAITS.index("openness")] = scores
    context = tuple(np.full(len(scores), 1) for _ in CONTEXT_SHAPE)
    found = world.utilities(traits, context, np.zeros((len(scores), 3)))
    changes = np.abs(np.diff(found, axis=0)).max(axis=1)
    assert np.all(changes[::2] == 0.0)
    assert np.all(changes[1::2] > 0.01)


def test_dimensions_depend_on_each_other_where_there_are_jumps() -> None:
    """What energy is worth depends on diversity there: its best level is not one for all of them.

    Elsewhere a utility is a product over dimensions.
    """
    for kind in KINDS:
        people, at = people_of(draw_world(kind, 0), n=300)
        by_level = people.utilities(at).reshape(-1, 3, 3, 3).argmax(axis=1)
        same = (by_level == by_level[:, :1, :1]).all(axis=(1, 2)).mean()
        assert same < 0.7 if kind == "jumps" else same == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_people_react_as_is_expected_of_their_world(kind: str) -> None:
    people, at = people_of(draw_world(kind, 2), n=40)
    repeats = 300
    many = Situations(*(np.repeat(column, repeats) for column in vars(at).values()))
    rng = np.random.default_rng(3)
    action = np.repeat(rng.integers(27, size=len(at)), repeats)
    did = react(rng, people, many, action)
    drawn = rewards(RewardWeights(), did.mask, did.completion_rate, did.mood_change)
    error = drawn.reshape(-1, repeats).std(axis=1) / np.sqrt(repeats)
    exact = expected_rewards(people, at, RewardWeights())[np.arange(len(at)), action[::repeats]]
    assert np.abs((drawn.reshape(-1, repeats).mean(axis=1) - exact) / error).max() < 5.0


@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_every_world_has_utilities_and_is_its_seeds(kind: str, seed: int) -> None:
    one, again = (draw_world(kind, seed) for _ in range(2))
    people, at = people_of(one, n=30)
    found = people.utilities(at)
    assert found.shape == (len(at), 27)
    assert found.min() > 0.0
    assert found.max() <= 1.0
    assert np.array_equal(found, people_of(again, n=30)[0].utilities(at))
    other = replace(people, world=draw_world(kind, seed + 1))
    assert np.array_equal(found, other.utilities(at)) == (kind == "own")
    # Their utilities are all that differs.
    usual, when = people_of(OWN, n=30)
    assert np.array_equal(usual.traits, people.traits)
    assert np.array_equal(when.time, at.time)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10, deadline=None)
def test_tastes_of_a_person_are_alike_in_all_content_types(seed: int) -> None:
    tastes = draw_tastes(np.random.default_rng(seed), 4000)
    music, video, game = tastes[..., 0].T
    for one, other in ((music, video), (video, game)):
        assert np.corrcoef(one, other)[0, 1] == pytest.approx(
            0.35**2 / (0.35**2 + 0.25**2), abs=0.1
        )


def test_a_comparison_takes_any_world() -> None:
    plan = Plan(sizes=(1000,), seeds=1, held_out=2000, visits=100, world="good_rules")
    for kind in KINDS:
        log, held_out = draw_logs(replace(plan, sizes=(4000,), world=kind), seed=3)
        assert (len(log), len(held_out.log)) == (4000, 2000)
    (rules,) = trials(plan, [RulesSystem()], lambda name, size, seed: None)
    assert rules.regret < 0.03
    with pytest.raises(ValueError, match="world must be one of own, jumps"):
        Plan(world="ours")
    with pytest.raises(KeyError):
        draw_world("ours", 0)
