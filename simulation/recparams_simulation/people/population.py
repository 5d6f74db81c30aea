"""Simulated people: their scores, their personal tastes, and habits that follow."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recparams_rl.numerics import softmax
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, time_of_day
from recparams_simulation.people.preferences import OWN, World
from recparams_simulation.people.traits import Floats, draw_traits, standardise

Ints = NDArray[np.int64]

MOOD_VALENCES = np.array([0.0, 0.8, -0.8, -0.6, 0.5, 0.6, 0.6, -0.7])
"""Valence of each of MOODS, -1 to 1, after the circumplex of Russell (1980)."""

TASTE_SDS = 0.35, 0.25
"""Standard deviations of personal tastes that hold everywhere, and of those of a content type."""

HOURS_OF_SPREAD = 3.0
SECONDS_BETWEEN_VISITS = 2 * 3600
DAY = 86400
WEEK = 7 * DAY
_TIME_OF_HOUR = np.array([TIMES_OF_DAY.index(time_of_day(hour)) for hour in range(24)])


@dataclass(frozen=True)
class Population:
    """n people. A learner sees their traits alone.

    Attributes:
        traits: scores 0 to 100 in the order of TRAITS, (n, 5).
        tastes: personal shifts of the ideal energy, diversity and novelty in each content type,
            logits, (n, 3, 3).
        visits_per_week: mean number of visits, above 0, (n,).
        peak_hour: hour of the day around which they visit, 0 to 24, (n,).
        content_shares: probability of each of CONTENT_TYPES in a visit, (n, 3).
        mood_logits: logits of the probability of each of MOODS, (n, 8).
        world: what they prefer, given all of that.
    """

    traits: Floats
    tastes: Floats
    visits_per_week: Floats
    peak_hour: Floats
    content_shares: Floats
    mood_logits: Floats
    world: World = OWN

    def __len__(self) -> int:
        return len(self.traits)

    def __getitem__(self, people: Ints) -> "Population":
        """Returns the people of some indices, shape (k,); who is named twice becomes two people."""
        columns = {name: column[people] for name, column in vars(self).items() if name != "world"}
        return replace(self, **columns)

    def utilities(self, at: "Situations") -> Floats:
        """Returns the utility of each of the 27 actions, above 0 up to 1, shape (m, 27)."""
        tastes = self.tastes[at.person, at.content_type]
        return self.world.utilities(self.traits[at.person], at.context, tastes)

    def replaced(self, people: Ints, newcomers: "Population") -> "Population":
        """Returns a population with newcomers, as many, in the places of some people."""
        columns = {name: column.copy() for name, column in vars(self).items() if name != "world"}
        for name, column in columns.items():
            column[people] = getattr(newcomers, name)
        return replace(self, **columns)


@dataclass(frozen=True)
class Situations:
    """m moments at which a recommendation is wanted, columns of shape (m,), all int64.

    Attributes:
        person: index into a population.
        time: seconds since 1970; everybody lives at UTC.
        content_type, mood: positions in CONTENT_TYPES and MOODS.
    """

    person: Ints
    time: Ints
    content_type: Ints
    mood: Ints

    def __len__(self) -> int:
        return len(self.person)

    def __getitem__(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> "Situations":
        return Situations(
            self.person[rows], self.time[rows], self.content_type[rows], self.mood[rows]
        )

    @property
    def time_of_day(self) -> Ints:
        """Positions in TIMES_OF_DAY, (m,)."""
        times: Ints = _TIME_OF_HOUR[self.time % DAY // 3600]
        return times

    @property
    def context(self) -> tuple[Ints, Ints, Ints]:
        """Positions in CONTENT_TYPES, MOODS and TIMES_OF_DAY, (m,) each."""
        return self.content_type, self.mood, self.time_of_day


def draw_tastes(rng: np.random.Generator, n: int) -> Floats:
    """Draws the personal tastes of n people, logits, (n, 3, 3)."""
    everywhere = rng.normal(0.0, TASTE_SDS[0], size=(n, 1, 3))
    return everywhere + rng.normal(0.0, TASTE_SDS[1], size=(n, len(CONTENT_TYPES), 3))


def draw_population(rng: np.random.Generator, n: int, world: World = OWN) -> Population:
    """Draws n people. Equal generators give equal people, who differ by world in preferences alone.

    Args:
        rng: the generator.
        n: number of people.
        world: theirs.
    """
    traits = draw_traits(rng, n)
    openness, conscientiousness, extraversion, _, neuroticism = standardise(traits).T
    tastes = draw_tastes(rng, n)

    # Conscientious people are morning types: Randler, Pers. Individ. Differ. 45 (2008).
    peak_hour = (17.0 - 1.5 * conscientiousness + rng.normal(0.0, 3.0, size=n)) % 24.0

    content_logits = rng.normal(0.0, 0.7, size=(n, len(CONTENT_TYPES)))
    content_logits += [0.5, 0.2, 0.0]
    content_logits[:, CONTENT_TYPES.index("music")] += 0.3 * openness

    # Extraversion goes with pleasant, neuroticism with unpleasant affect: Costa & McCrae,
    # J. Pers. Soc. Psychol. 38 (1980).
    cheerfulness = 0.4 * extraversion - 0.6 * neuroticism
    mood_logits = np.outer(cheerfulness, MOOD_VALENCES) + rng.normal(0.0, 0.4, size=(n, len(MOODS)))
    mood_logits[:, MOODS.index("neutral")] += 0.5

    return Population(
        traits=traits,
        tastes=tastes,
        visits_per_week=rng.gamma(4.0, 5.0 / 4.0, size=n),
        peak_hour=peak_hour,
        content_shares=softmax(content_logits),
        mood_logits=mood_logits,
        world=world,
    )


def draw_visits(
    rng: np.random.Generator, population: Population, people: Ints, start: int
) -> Situations:
    """Draws the visits that people begin in the week from `start`, by time.

    Args:
        rng: the generator.
        population: the people.
        people: indices of those who still come, shape (k,).
        start: seconds since 1970.

    Returns:
        First situations in [start, start + WEEK), those of a person `SECONDS_BETWEEN_VISITS` apart.
    """
    person = np.repeat(people, rng.poisson(population.visits_per_week[people]))
    hour = population.peak_hour[person] + rng.normal(0.0, HOURS_OF_SPREAD, size=len(person))
    day = rng.integers(0, 7, size=len(person))
    time = start + day * DAY + (np.rint(hour * 3600).astype(np.int64) - start) % DAY
    order = np.lexsort((time, person))
    person, time = person[order], time[order]
    apart = np.ones(len(person), dtype=np.bool_)
    apart[1:] = (person[1:] != person[:-1]) | (time[1:] - time[:-1] >= SECONDS_BETWEEN_VISITS)
    person, time = person[apart], time[apart]
    visits = Situations(
        person=person,
        time=time,
        content_type=choose(rng, np.log(population.content_shares[person])),
        mood=choose(rng, population.mood_logits[person]),
    )
    return visits[np.argsort(visits.time, kind="stable")]


def choose(rng: np.random.Generator, logits: Floats) -> Ints:
    """Draws a column for each row with probabilities softmax(logits), (m, k) -> (m,)."""
    chosen: Ints = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return chosen
