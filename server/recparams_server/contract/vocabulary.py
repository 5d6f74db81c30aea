"""The contract's enum numbers, which are stored, and the learning core's names for them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams.v1 import types_pb2 as types
from recparams.v1.recommendation_pb2 import DecisionSource, PolicyArm
from recparams_rl.action import ACTIONS
from recparams_rl.arms import ARMS
from recparams_rl.policy import SOURCES
from recparams_rl.reward import REACTIONS
from recparams_rl.state import Context, StateSpace
from recparams_server.contract.enums import enum_name, enum_number

Traits = tuple[float, float, float, float, float]
UNKNOWN_TRAITS: Traits = (math.nan, math.nan, math.nan, math.nan, math.nan)
ContextNumbers = tuple[int, int, int]
Contexts = dict[ContextNumbers, int]


def _names(enum: Any) -> dict[int, str]:
    """Returns number -> name of an enum's values, as in {2: "happy"}, without UNSPECIFIED."""
    return {number: enum_name(enum.DESCRIPTOR, number) for number in enum.values() if number != 0}


CONTENT_TYPE_NAMES = _names(types.ContentType)
MOOD_NAMES = _names(types.Mood)
TIME_OF_DAY_NAMES = _names(types.TimeOfDay)
ARM_NAMES = _names(PolicyArm)
ARM_NUMBERS = {name: enum_number(PolicyArm, name) for name in ARM_NAMES.values()}
SOURCE_NUMBERS = tuple(enum_number(DecisionSource, name) for name in SOURCES)
"""By source, as the learning core numbers them."""
REACTION_NAMES = _names(types.Reaction)
TIME_OF_DAY_NUMBERS = {name: number for number, name in TIME_OF_DAY_NAMES.items()}

if dict(enumerate(REACTIONS, 1)) != REACTION_NAMES:
    raise RuntimeError("the contract's reactions are not the learning core's")

if set(ARM_NUMBERS) != set(ARMS):
    raise RuntimeError("the contract's arms are not the learning core's")

ACTION_MESSAGES = tuple(
    types.Action(
        energy=enum_number(types.Energy, action.energy),
        diversity=enum_number(types.Diversity, action.diversity),
        novelty=enum_number(types.Novelty, action.novelty),
    )
    for action in ACTIONS
)
_ACTION_INDEX = {
    (action.energy, action.diversity, action.novelty): index
    for index, action in enumerate(ACTION_MESSAGES)
}
PARAMS_MESSAGES = tuple(
    types.RecommendationParams(**vars(action.to_params())) for action in ACTIONS
)


def action_index(action: types.Action) -> int | None:
    """Returns the index of an action, or None if a dimension is missing or unknown."""
    return _ACTION_INDEX.get((action.energy, action.diversity, action.novelty))


def unknown_names(space: StateSpace) -> list[str]:
    """Returns the names of a space's vocabularies that the contract does not have."""
    known = (
        (space.content_types, CONTENT_TYPE_NAMES),
        (space.moods, MOOD_NAMES),
        (space.times_of_day, TIME_OF_DAY_NAMES),
    )
    return [name for names, of in known for name in names if name not in of.values()]


def context_table(space: StateSpace) -> Contexts:
    """Returns (content type, mood, time of day) as enum numbers -> context index of a space."""
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
    """Returns the position in a vocabulary of each enum number, -1 for those not in it.

    Args:
        names: number -> name of an enum.
        vocabulary: names of a state space.

    Returns:
        Shape (highest number + 1,).
    """
    table = np.full(max(names) + 1, -1, dtype=np.int32)
    for number, name in names.items():
        if name in vocabulary:
            table[number] = vocabulary.index(name)
    return table
