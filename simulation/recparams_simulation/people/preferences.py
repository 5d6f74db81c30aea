"""Preferences of simulated people: the utility of each action by traits, context and taste.

In `OWN`, the usual world, everybody has an ideal energy, diversity and novelty for each context,
and likes an action the less the further it lies from that point (unfolding: Coombs, "A Theory of
Data", 1964; the inverted U of arousal and liking: Berlyne, "Aesthetics and Psychobiology", 1971).
The ideals are logistic in a sum of leanings plus a personal taste. Some of the leanings are what
the hand-written rules (recparams_rl/rules.py) believe too; others are findings and guesses that a
thoughtful author of rules would get wrong. They are plausible, not measured: what matters is that
they are known here and to be found out there. recparams_simulation/people/worlds.py has other
worlds.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import ACTION_INTENSITIES, DIMENSIONS
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, TRAITS
from recparams_simulation.people.traits import Floats, standardise

Contexts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Positions in CONTENT_TYPES, MOODS and TIMES_OF_DAY, (m,) each."""

CONTEXT_SHAPE = len(CONTENT_TYPES), len(MOODS), len(TIMES_OF_DAY)

TOLERANCE = 0.4
"""Distance from the ideal at which utility is down to 61 %; the levels lie at 0, 0.5 and 1."""

IMPORTANCE = {
    "music": (1.3, 0.8, 0.9),
    "video": (0.9, 1.0, 1.1),
    "game": (1.1, 0.8, 1.1),
}
"""Weight of each dimension in the utility, by content type."""


@dataclass(frozen=True)
class Leaning:
    """Shift of the ideal of one dimension, in logits, or logits per standard deviation of a trait.

    It holds in the content types, moods and times of day named; where none is named, in all.
    """

    dimension: str
    weight: float
    trait: str | None = None
    content_types: tuple[str, ...] = CONTENT_TYPES
    moods: tuple[str, ...] = MOODS
    times_of_day: tuple[str, ...] = TIMES_OF_DAY


_DAY = ("morning", "afternoon")
_SCREEN = ("video", "game")

LEANINGS = (
    # What the rules believe too.
    Leaning("energy", 1.0, content_types=("game",)),
    Leaning("energy", 1.4, "extraversion", times_of_day=_DAY),
    Leaning("energy", 0.8, "extraversion", times_of_day=("evening",)),
    Leaning("energy", -0.8, times_of_day=("evening", "night")),
    Leaning("energy", 2.5, moods=("energetic",)),
    Leaning("energy", 1.0, moods=("happy",)),
    Leaning("energy", -2.5, moods=("calm", "relaxed")),
    Leaning("diversity", 1.2, content_types=("music", "video")),
    Leaning("diversity", 1.6, "openness", content_types=("music", "video")),
    Leaning("diversity", -0.8, "conscientiousness"),
    Leaning("diversity", 1.2, moods=("happy",)),
    Leaning("diversity", -1.2, moods=("anxious", "stressed")),
    Leaning("novelty", 1.0),
    Leaning("novelty", 1.5, "openness"),
    Leaning("novelty", -0.8, "neuroticism"),
    Leaning("novelty", 1.0, moods=("energetic",)),
    Leaning("novelty", -1.5, moods=("anxious",)),
    # Sad people choose sad music, the empathic above all (Taruffi & Koelsch 2014) ...
    Leaning("energy", -2.0, content_types=("music",), moods=("sad",)),
    Leaning("energy", -0.6, "agreeableness", content_types=("music",), moods=("sad",)),
    Leaning("novelty", -1.5, content_types=("music",), moods=("sad",)),
    # ... but a screen that distracts from the mood (mood management: Zillmann 1988).
    Leaning("energy", 2.5, content_types=_SCREEN, moods=("sad",)),
    Leaning("novelty", 1.5, content_types=_SCREEN, moods=("sad",)),
    # Stress is played off in fast games (Reinecke 2009) and otherwise calmed.
    Leaning("energy", 2.5, content_types=("game",), moods=("stressed",)),
    Leaning("energy", -1.5, content_types=("music", "video"), moods=("stressed",)),
    # Under stress the conscientious return to what they know (Derrick 2013).
    Leaning("novelty", -1.5, "conscientiousness", moods=("stressed",)),
    Leaning("energy", 0.8, "conscientiousness", content_types=("music",), moods=("stressed",)),
    # Anxiety goes deeper in the neurotic.
    Leaning("energy", -1.2, "neuroticism", moods=("anxious",)),
    Leaning("diversity", -0.8, "neuroticism", moods=("anxious",)),
    # Mornings are for morning people, which the conscientious are (Randler 2008); nights are not.
    Leaning("energy", 1.4, "conscientiousness", times_of_day=("morning",)),
    Leaning("energy", -1.2, "conscientiousness", times_of_day=("night",)),
    Leaning("novelty", -1.5, times_of_day=("morning",)),
    # Introverts come alive alone at night.
    Leaning("novelty", -1.2, "extraversion", times_of_day=("night",)),
    Leaning("energy", -1.2, "extraversion", content_types=("game",), times_of_day=("night",)),
    # Open people listen widely but immerse themselves in one game (Yee 2006).
    Leaning("diversity", -1.4, "openness", content_types=("game",)),
    Leaning("diversity", -1.2, content_types=("game",)),
    # An evening's video is one series.
    Leaning("diversity", -2.0, content_types=("video",), times_of_day=("evening", "night")),
    # Ease broadens (Fredrickson 2001).
    Leaning("novelty", 1.0, moods=("calm", "relaxed")),
    Leaning("diversity", 0.8, moods=("calm", "relaxed")),
    # The agreeable like what their friends like.
    Leaning("novelty", -1.0, "agreeableness", content_types=("music", "video")),
)

_WEIGHTS = np.array([IMPORTANCE[name] for name in CONTENT_TYPES])


def _coefficients() -> Floats:
    """Returns sums of leanings, (content types, moods, times of day, dimensions, 1 + traits)."""
    sums = np.zeros((*CONTEXT_SHAPE, len(DIMENSIONS), 1 + len(TRAITS)))
    for one in LEANINGS:
        where = np.ix_(
            [CONTENT_TYPES.index(name) for name in one.content_types],
            [MOODS.index(name) for name in one.moods],
            [TIMES_OF_DAY.index(name) for name in one.times_of_day],
            [list(DIMENSIONS).index(one.dimension)],
            [0 if one.trait is None else 1 + TRAITS.index(one.trait)],
        )
        sums[where] += one.weight
    return sums


class World(ABC):
    """What people prefer."""

    @abstractmethod
    def utilities(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        """Returns the utility of each of the 27 actions, above 0 up to 1, shape (m, 27).

        Args:
            traits: scores, 0 to 100, (m, 5).
            context: of each of the m situations.
            tastes: personal shifts of the ideal energy, diversity and novelty, logits, (m, 3).
        """


@dataclass(frozen=True, eq=False)
class IdealPoints(World):
    """World in which utility falls with the distance of an action from an ideal point.

    Attributes:
        coefficients: of the ideals' logits in each context, for each dimension of the action: a
            constant and the weights of k terms, (3, 8, 4, 3, 1 + k).
        taste: weight of personal tastes.
    """

    coefficients: Floats
    taste: float = 1.0

    def terms(self, traits: Floats) -> Floats:
        """Returns what the logits are linear in, (m, k): here the traits, standardised."""
        return standardise(traits)

    def logits(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        """Returns the logits of the ideals, (m, 3); arguments as `utilities`."""
        leanings = self.coefficients[context]
        logits = leanings[..., 0] + np.einsum("mdt,mt->md", leanings[..., 1:], self.terms(traits))
        shifted: Floats = logits + self.taste * tastes
        return shifted

    def ideals(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        """Returns the ideal levels, 0 (lowest) to 1, (m, 3); arguments as `utilities`."""
        points: Floats = 1.0 / (1.0 + np.exp(-self.logits(traits, context, tastes)))
        return points

    def utilities(self, traits: Floats, context: Contexts, tastes: Floats) -> Floats:
        """Returns exp(-0.5 sum of importance ((level - ideal) / TOLERANCE)^2) over dimensions."""
        ideals = self.ideals(traits, context, tastes)
        distance = (ACTION_INTENSITIES[None] - ideals[:, None, :]) / TOLERANCE
        cost = np.einsum("mad,md->ma", distance**2, _WEIGHTS[context[0]])
        suits: Floats = np.exp(-0.5 * cost)
        return suits


OWN = IdealPoints(_coefficients())
"""The usual world, that of `LEANINGS`."""
