"""Between the contract's enum numbers, which are stored, and the learning core's names."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import types_pb2 as types
from recparams.v1.recommendation_pb2 import DecisionSource, PolicyArm
from rl.action import ACTIONS, DIVERSITIES, NOVELTIES
from rl.arms import ARMS
from rl.policy import SOURCES
from rl.reward import REACTIONS
from rl.state import Context, StateSpace

Traits = tuple[float, float, float, float, float]
UNKNOWN_TRAITS: Traits = (math.nan, math.nan, math.nan, math.nan, math.nan)
ContextNumbers = tuple[int, int, int]
Contexts = dict[ContextNumbers, int]


def _names(enum: Any, prefix: str) -> dict[int, str]:
    """Number -> name of an enum's values, as in {2: "happy"}; UNSPECIFIED is left out."""
    return {
        number: name.removeprefix(prefix).lower() for name, number in enum.items() if number != 0
    }


CONTENT_TYPE_NAMES = _names(types.ContentType, "CONTENT_TYPE_")
MOOD_NAMES = _names(types.Mood, "MOOD_")
TIME_OF_DAY_NAMES = _names(types.TimeOfDay, "TIME_OF_DAY_")
ARM_NAMES = _names(PolicyArm, "POLICY_ARM_")
ARM_NUMBERS = {name: PolicyArm.Value(f"POLICY_ARM_{name.upper()}") for name in ARM_NAMES.values()}
SOURCE_NUMBERS = tuple(DecisionSource.Value(f"DECISION_SOURCE_{name.upper()}") for name in SOURCES)
"""By source, as the learning core numbers them."""
REACTION_NAMES = _names(types.Reaction, "REACTION_")
TIME_OF_DAY_NUMBERS = {name: number for number, name in TIME_OF_DAY_NAMES.items()}

if tuple(REACTION_NAMES.values()) != REACTIONS or tuple(REACTION_NAMES) != tuple(range(1, 7)):
    raise RuntimeError("the contract's reactions are not the learning core's")

if set(ARM_NUMBERS) != set(ARMS):
    raise RuntimeError("the contract's arms are not the learning core's")

ACTION_MESSAGES = tuple(
    types.Action(
        energy=types.Energy.Value(f"ENERGY_{action.energy.upper()}"),
        diversity=types.Diversity.Value(f"DIVERSITY_{action.diversity.upper()}"),
        novelty=types.Novelty.Value(f"NOVELTY_{action.novelty.upper()}"),
    )
    for action in ACTIONS
)
PARAMS_MESSAGES = tuple(
    types.RecommendationParams(**vars(action.to_params())) for action in ACTIONS
)


def action_index(action: types.Action) -> int | None:
    """Index of an action message; None where a dimension is missing or unknown."""
    levels = (action.energy, action.diversity, action.novelty)
    if not all(1 <= level <= 3 for level in levels):
        return None
    energy, diversity, novelty = (level - 1 for level in levels)
    return (energy * len(DIVERSITIES) + diversity) * len(NOVELTIES) + novelty


def unknown_names(space: StateSpace) -> list[str]:
    """Names of the space's vocabularies that the contract does not have."""
    known = (
        (space.content_types, CONTENT_TYPE_NAMES),
        (space.moods, MOOD_NAMES),
        (space.times_of_day, TIME_OF_DAY_NAMES),
    )
    return [name for names, of in known for name in names if name not in of.values()]


def context_table(space: StateSpace) -> dict[tuple[int, int, int], int]:
    """(content type, mood, time of day) as enum numbers -> context index of the space."""
    return {
        (content, mood, time): space.context(Context(content_name, mood_name, time_name))
        for content, content_name in CONTENT_TYPE_NAMES.items()
        if content_name in space.content_types
        for mood, mood_name in MOOD_NAMES.items()
        if mood_name in space.moods
        for time, time_name in TIME_OF_DAY_NAMES.items()
        if time_name in space.times_of_day
    }


def positions(names: dict[int, str], vocabulary: tuple[str, ...]) -> NDArray[np.int32]:
    """Enum number -> position in a vocabulary, as an array to index; -1 where it has none."""
    table = np.full(max(names) + 1, -1, dtype=np.int32)
    for number, name in names.items():
        if name in vocabulary:
            table[number] = vocabulary.index(name)
    return table
