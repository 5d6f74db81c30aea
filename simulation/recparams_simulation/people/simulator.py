"""Reactions of simulated people to a recommendation, and the course of their visits.

Everything follows from the utility of the action (recparams_simulation/people/preferences.py):
reactions, the mood after it, the chance of another decision in the visit and of never coming back.
Whoever is served well is in a better mood, stays longer and returns, so learning pays twice.
Expected rewards have a closed form, so the optimum is known and regret in immediate reward is
exact. All functions work on columns of m situations and draw from the generator they are given.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.reward import REACTIONS, RewardWeights
from recparams_rl.state import TRAITS
from recparams_simulation.people.population import (
    MOOD_VALENCES,
    Ints,
    Population,
    Situations,
    choose,
)
from recparams_simulation.people.traits import Floats, standardise

ATTENTION = 0.85
"""Share of recommendations that are reacted to at all."""

MOOD_REPORTED = 0.5
"""Share of those where the mood after it is told too."""

PAUSE_SECONDS = (120, 600)
"""Between two decisions of one visit."""

_MOOD_SPREAD = 0.25
_SKIPPED_RATE = (0.0, 0.3)
_UNFINISHED_RATE = (0.3, 0.9)
_MOOD_PERSISTENCE = 2.5
_MOOD_GAIN = 3.0
_BITS = 1 << np.arange(len(REACTIONS))


@dataclass(frozen=True)
class Outcomes:
    """Reactions of m people, columns of shape (m,).

    Attributes:
        mask: reactions as in recparams_rl.reward, int64; an impression alone if ignored.
        completion_rate: 0 to 1, float64; NaN if ignored.
        mood_change: -1 to 1, float64; NaN if not reported.
        mood: the mood after it, position in MOODS, int64.
        goes_on: True if another decision follows in this visit.
        leaves: True if they never come back after this visit.
    """

    mask: Ints
    completion_rate: Floats
    mood_change: Floats
    mood: Ints
    goes_on: NDArray[np.bool_]
    leaves: NDArray[np.bool_]


@dataclass(frozen=True)
class _Chances:
    """Probabilities given attention, and the mean mood change; all of one shape."""

    like: Floats
    dislike: Floats
    complete: Floats
    skip: Floats
    share_if_liked: Floats
    mood_change: Floats


def _chances(utility: Floats, extraversion: Floats) -> _Chances:
    return _Chances(
        like=0.05 + 0.75 * utility,
        dislike=0.45 * (1.0 - utility) ** 2,
        complete=0.1 + 0.7 * utility,
        skip=0.6 * (1.0 - utility),
        share_if_liked=0.3 / (1.0 + np.exp(-extraversion)),
        mood_change=0.7 * (2.0 * utility - 1.0),
    )


def _extraversion(population: Population, at: Situations) -> Floats:
    scores: Floats = standardise(population.traits[at.person])[:, TRAITS.index("extraversion")]
    return scores


def expected_rewards(
    population: Population,
    at: Situations,
    weights: RewardWeights,
    utilities: Floats | None = None,
) -> Floats:
    """Returns the exact mean immediate reward of each of the 27 actions, shape (m, 27).

    Args:
        population: the people.
        at: the situations.
        weights: of the reward.
        utilities: those of the situations, (m, 27), where they are known.
    """
    suits = population.utilities(at) if utilities is None else utilities
    chances = _chances(suits, _extraversion(population, at)[:, None])
    unfinished = 1.0 - chances.complete - chances.skip
    completion_rate = (
        chances.complete
        + chances.skip * sum(_SKIPPED_RATE) / 2
        + unfinished * sum(_UNFINISHED_RATE) / 2
    )
    attentive = (
        weights.like * chances.like
        + weights.dislike * chances.dislike
        + weights.complete * chances.complete
        + weights.skip * chances.skip
        + weights.share * chances.like * chances.share_if_liked
        + weights.completion_rate * completion_rate
        + weights.mood_change * MOOD_REPORTED * chances.mood_change
    )
    mean: Floats = ATTENTION * attentive + (1.0 - ATTENTION) * weights.impression
    return mean


def like_probabilities(population: Population, at: Situations) -> Floats:
    """Returns the exact probability that each of the 27 actions is liked, shape (m, 27)."""
    chances = _chances(population.utilities(at), _extraversion(population, at)[:, None])
    return ATTENTION * chances.like


def react(
    rng: np.random.Generator,
    population: Population,
    at: Situations,
    action: NDArray[np.integer[Any]],
    utilities: Floats | None = None,
) -> Outcomes:
    """Draws the reactions of people to the actions they were given.

    Args:
        rng: the generator.
        population: the people.
        at: the situations.
        action: 0 to 26, shape (m,).
        utilities: those of the situations, (m, 27), where they are known.
    """
    m = len(at)
    suits = population.utilities(at) if utilities is None else utilities
    utility = suits[np.arange(m), action]
    chances = _chances(utility, _extraversion(population, at))

    attentive = rng.random(m) < ATTENTION
    opinion = rng.random(m)
    like = attentive & (opinion < chances.like)
    dislike = attentive & (opinion >= 1.0 - chances.dislike)
    finish = rng.random(m)
    complete = attentive & (finish < chances.complete)
    skip = attentive & (finish >= 1.0 - chances.skip)
    share = like & (rng.random(m) < chances.share_if_liked)

    partial = np.where(
        skip, rng.uniform(*_SKIPPED_RATE, size=m), rng.uniform(*_UNFINISHED_RATE, size=m)
    )
    completion_rate = np.where(complete, 1.0, partial)
    mood_change = chances.mood_change + rng.uniform(-_MOOD_SPREAD, _MOOD_SPREAD, size=m)
    reports = attentive & (rng.random(m) < MOOD_REPORTED)

    flags = {
        "like": like,
        "dislike": dislike,
        "complete": complete,
        "skip": skip,
        "share": share,
        "impression": ~attentive,
    }
    never = np.zeros(m, dtype=np.bool_)
    return Outcomes(
        mask=np.stack([flags.get(name, never) for name in REACTIONS], axis=1) @ _BITS,
        completion_rate=np.where(attentive, completion_rate, np.nan),
        mood_change=np.where(reports, mood_change, np.nan),
        mood=_next_mood(rng, population, at, utility),
        goes_on=rng.random(m) < 0.3 + 0.5 * utility,
        leaves=rng.random(m) < 0.015 * (1.0 - utility) ** 2,
    )


def _next_mood(
    rng: np.random.Generator, population: Population, at: Situations, utility: Floats
) -> Ints:
    """Draws moods, which persist, drift to the person's usual ones, and rise with utility."""
    logits = population.mood_logits[at.person] + np.outer(
        _MOOD_GAIN * (utility - 0.5), MOOD_VALENCES
    )
    logits[np.arange(len(at)), at.mood] += _MOOD_PERSISTENCE
    return choose(rng, logits)


def next_situations(rng: np.random.Generator, at: Situations, outcomes: Outcomes) -> Situations:
    """Returns the next situations of the visits that go on, a few minutes later."""
    on = outcomes.goes_on
    pause = rng.integers(*PAUSE_SECONDS, size=int(on.sum()))
    here = at[on]
    return Situations(here.person, here.time + pause, here.content_type, outcomes.mood[on])
