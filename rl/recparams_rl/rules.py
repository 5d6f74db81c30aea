"""The rule-based policy, written by hand.

It is the baseline that a learned policy has to beat, the fallback without a model, and the
prior of the smoothed policy. Each dimension of the action has an integer score, a sum over traits
(-1 below 40, +1 from 60) and context, cut at two thresholds. Integers keep every implementation of
it equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import DIVERSITIES, ENERGIES, NOVELTIES, Action
from recparams_rl.state import TRAITS, Context, StateSpace

LOW_TRAIT = 40.0
HIGH_TRAIT = 60.0


@dataclass(frozen=True)
class Rule:
    """Scores of one dimension. Names that are not listed score 0.

    The level is the first where score < middle, the last where score >= top, else the middle one.
    """

    middle: int
    top: int
    traits: dict[str, int] = field(default_factory=dict)
    content_types: dict[str, int] = field(default_factory=dict)
    moods: dict[str, int] = field(default_factory=dict)
    times_of_day: dict[str, int] = field(default_factory=dict)


ENERGY_RULE = Rule(
    middle=0,
    top=2,
    traits={"extraversion": 1},
    content_types={"game": 1},
    moods={
        "energetic": 2,
        "happy": 1,
        "sad": -1,
        "anxious": -1,
        "stressed": -1,
        "calm": -2,
        "relaxed": -2,
    },
    times_of_day={"morning": 1, "evening": -1, "night": -1},
)
DIVERSITY_RULE = Rule(
    middle=0,
    top=1,
    traits={"openness": 2, "conscientiousness": -1},
    moods={"happy": 1, "anxious": -1, "stressed": -1},
)
NOVELTY_RULE = Rule(
    middle=0,
    top=2,
    traits={"openness": 2, "neuroticism": -1},
    moods={"energetic": 1, "sad": -1, "anxious": -1, "stressed": -1},
)
RULES = {"energy": ENERGY_RULE, "diversity": DIVERSITY_RULE, "novelty": NOVELTY_RULE}


def rule_based_action(traits: Sequence[float], context: Context) -> Action:
    """Returns the rules' action for five scores (0 to 100, in the order of `TRAITS`)."""
    energy, diversity, novelty = (
        _level(rule, _score(rule, traits, context)) for rule in RULES.values()
    )
    return Action(ENERGIES[energy], DIVERSITIES[diversity], NOVELTIES[novelty])


def rule_table(space: StateSpace) -> NDArray[np.uint8]:
    """Returns the rules' action in every state, at midpoints of its cell, uint8 (n_states,)."""
    middle = space.midpoints
    # Bytes, for there may be millions of states: scores are small.
    lean = np.where(middle < LOW_TRAIT, -1, np.where(middle >= HIGH_TRAIT, 1, 0)).astype(np.int8)
    action = np.zeros((space.n_cells, space.n_contexts), dtype=np.uint8)
    for rule in RULES.values():
        cells = np.zeros(1, dtype=np.int8)
        for trait in TRAITS:
            cells = np.add.outer(cells, np.int8(rule.traits.get(trait, 0)) * lean).ravel()
        contexts = np.zeros(1, dtype=np.int8)
        for names, scores in (
            (space.content_types, rule.content_types),
            (space.moods, rule.moods),
            (space.times_of_day, rule.times_of_day),
        ):
            of_names = np.array([scores.get(name, 0) for name in names], dtype=np.int8)
            contexts = np.add.outer(contexts, of_names).ravel()
        score = np.add.outer(cells, contexts)
        action = action * np.uint8(3) + (score >= rule.middle) + (score >= rule.top)
    return action.ravel()


def _score(rule: Rule, traits: Sequence[float], context: Context) -> int:
    score = rule.content_types.get(context.content_type, 0)
    score += rule.moods.get(context.mood, 0)
    score += rule.times_of_day.get(context.time_of_day, 0)
    for trait, value in zip(TRAITS, traits, strict=True):
        if value < LOW_TRAIT:
            score -= rule.traits.get(trait, 0)
        elif value >= HIGH_TRAIT:
            score += rule.traits.get(trait, 0)
    return score


def _level(rule: Rule, score: int) -> int:
    return (score >= rule.middle) + (score >= rule.top)
