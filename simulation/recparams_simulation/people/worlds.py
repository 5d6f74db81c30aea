"""Worlds: people like those of recparams_simulation/people/population.py who prefer other things.

What learns well in the one world that its authors looked at may owe that to what they built in. So
there are five kinds, four of them drawn at random:

- `own`: the usual one, `preferences.OWN`.
- `jumps`: the usual leanings, but tastes change in steps, at random scores; further steps count,
  each by context; and two dimensions go together or apart (XOR) as a step and the mood have it.
- `useless_rules`: the usual one under other names. Traits, moods and whatever else the rules look
  at have changed places, so that the rules are worth what chance is.
- `good_rules`: what the rules choose is nearly always best, and people differ little otherwise.
- `ideal_points`: ideals are logistic in random linear and quadratic maps of traits and context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import ACTION_INTENSITIES, DIMENSIONS
from recparams_rl.reward import RewardWeights
from recparams_rl.rules import rule_table
from recparams_rl.state import MOODS, TRAITS, StateSpace
from recparams_simulation.people.population import draw_population, draw_visits
from recparams_simulation.people.preferences import CONTEXT_SHAPE, OWN, Contexts, IdealPoints, World
from recparams_simulation.people.simulator import expected_rewards
from recparams_simulation.people.traits import Floats, standardise

_SPACE = StateSpace()
_RULES = rule_table(_SPACE)

_PAIRS = list(combinations(range(len(DIMENSIONS)), 2))
_ALIKE = np.stack(
    [np.prod(2.0 * ACTION_INTENSITIES[:, pair] - 1.0, axis=1) for pair in _PAIRS], axis=1
)
"""1 for actions high or low in both dimensions of a pair, -1 if in one, 0 if in the middle."""

_PAIR_COST = 0.7
"""Fall of the logarithm of utility where a pair goes together and should not, or apart."""

_STEPS = 2
"""Steps of each trait in a world of jumps."""

_PRODUCTS = list(combinations_with_replacement(range(len(TRAITS)), 2))

_RULES_LOGIT = 3.0
"""Logit of the ideal where the rules choose the highest level; its negative where the lowest."""

_JUDGES = 500
"""People by whom it is judged what the rules are worth in a world."""

_AS_CHANCE = 0.03
"""Reward by which useless rules may differ from chance there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Jumps(IdealPoints):
    """World of steps: `terms` are -1 below a threshold of a trait and 1 from there on.

    Attributes:
        thresholds: of each trait, in standard deviations, trait after trait, (k,).
        together: sign with which each pair of dimensions goes together in each mood, (8, 3).
        step: index of the step below which the sign of each pair is the opposite, (3,).
    """

    thresholds: Floats
    together: Floats
    step: NDArray[np.integer[Any]]

    def terms(self, traits: Floats) -> Floats:
        z = np.repeat(standardise(traits), _STEPS, axis=1)
        return np.where(z >= self.thresholds, 1.0, -1.0)

    def utilities(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        sign = self.together[context[1]] * self.terms(traits)[:, self.step]
        wrong = np.maximum(-sign[:, None, :] * _ALIKE, 0.0).sum(axis=2)
        suits: Floats = super().utilities(traits, context, tastes) * np.exp(-_PAIR_COST * wrong)
        return suits


@dataclass(frozen=True, eq=False)
class Curved(IdealPoints):
    """World whose `terms` are the standardised traits and their products in pairs."""

    def terms(self, traits: Floats) -> Floats:
        z = standardise(traits)
        return np.column_stack([z, *(z[:, i] * z[:, j] for i, j in _PRODUCTS)])


@dataclass(frozen=True, eq=False)
class NearRules(IdealPoints):
    """World whose ideals lie about the levels of the rules' action."""

    def logits(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        state = _SPACE.index_columns(traits, *context)
        levels = ACTION_INTENSITIES[_RULES[state]]
        return super().logits(traits, context, tastes) + _RULES_LOGIT * (2.0 * levels - 1.0)


def _effects(rng: np.random.Generator, k: int, sd: float) -> Floats:
    """Draws weights of k terms in each context and dimension, (3, 8, 4, 3, k).

    Each is the sum of four normal ones, one of everywhere and one of each part of the context, and
    has the standard deviation `sd`.
    """
    shape = (*CONTEXT_SHAPE, len(DIMENSIONS), k)
    sums = rng.normal(0.0, sd / 2.0, size=shape[3:]) + np.zeros(shape)
    for part in range(3):
        of_part = tuple(n if axis in (part, 3, 4) else 1 for axis, n in enumerate(shape))
        sums += rng.normal(0.0, sd / 2.0, size=of_part)
    return sums


def _jumps(rng: np.random.Generator) -> World:
    steps = _effects(rng, _STEPS * len(TRAITS), sd=0.3)
    # What the usual leanings have of a trait is on its first step.
    steps[..., ::_STEPS] += OWN.coefficients[..., 1:]
    return Jumps(
        coefficients=np.concatenate([OWN.coefficients[..., :1], steps], axis=-1),
        thresholds=rng.uniform(-1.0, 1.0, size=_STEPS * len(TRAITS)),
        together=rng.choice([-1.0, 1.0], size=(len(MOODS), len(_PAIRS))),
        step=rng.choice(_STEPS * len(TRAITS), size=len(_PAIRS), replace=False),
    )


def _useless_rules(rng: np.random.Generator) -> World:
    while True:
        content, mood, time, dimension = (
            rng.permutation(n) for n in (*CONTEXT_SHAPE, len(DIMENSIONS))
        )
        trait = np.r_[0, 1 + rng.permutation(len(TRAITS))]
        sign = rng.choice([-1.0, 1.0], size=(len(DIMENSIONS), 1))
        world = IdealPoints(sign * OWN.coefficients[np.ix_(content, mood, time, dimension, trait)])
        if abs(_gain_of_rules(rng, world)) < _AS_CHANCE:
            return world


def _gain_of_rules(rng: np.random.Generator, world: World) -> float:
    """Returns the mean reward of the rules minus that of random actions, in some people's week."""
    people = draw_population(rng, _JUDGES, world)
    at = draw_visits(rng, people, np.arange(_JUDGES), 0)
    mean = expected_rewards(people, at, RewardWeights())
    rules = _RULES[_SPACE.index_columns(people.traits[at.person], *at.context)]
    return float((mean[np.arange(len(at)), rules] - mean.mean(axis=1)).mean())


def _good_rules(rng: np.random.Generator) -> World:
    return NearRules(_effects(rng, 1 + len(TRAITS), sd=0.22), taste=0.5)


def _ideal_points(rng: np.random.Generator) -> World:
    constant = _effects(rng, 1, sd=1.5)
    linear = _effects(rng, len(TRAITS), sd=0.8)
    quadratic = _effects(rng, len(_PRODUCTS), sd=0.25)
    return Curved(np.concatenate([constant, linear, quadratic], axis=-1))


KINDS: dict[str, Callable[[np.random.Generator], World]] = {
    "own": lambda rng: OWN,  # noqa: ARG005 - nothing of it is random
    "jumps": _jumps,
    "useless_rules": _useless_rules,
    "good_rules": _good_rules,
    "ideal_points": _ideal_points,
}


def draw_world(kind: str, seed: int) -> World:
    """Draws a world. Equal seeds give equal worlds.

    Args:
        kind: one of `KINDS`.
        seed: 0 or more.

    Raises:
        KeyError: if there is no such kind.
    """
    return KINDS[kind](np.random.default_rng(seed))
