"""The state: Big Five personality (discretised), content type, mood and time of day.

A state index is ``cell * n_contexts + context``: the personality *cell* is the slow axis, so that
everything one person can ever visit lies in one contiguous block of the table.

Learning has bins of equal width. A policy may be served on finer ones (`serving_space`), whose cuts
are whole numbers and contain the thresholds of the rules.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
CONTENT_TYPES = ("music", "video", "game")
MOODS = ("neutral", "happy", "sad", "anxious", "calm", "relaxed", "energetic", "stressed")
TIMES_OF_DAY = ("morning", "afternoon", "evening", "night")

UNKNOWN_PERSONALITY = -1
"""Encoded state of a row whose trait scores are missing."""

NO_CELL = -1
"""The cell of somebody whose trait scores are missing or out of range."""

OUT_OF_VOCABULARY = -2
"""Encoded state of a row whose context the space does not know."""


@dataclass(frozen=True)
class Context:
    """Context of a recommendation, by vocabulary names."""

    content_type: str
    mood: str
    time_of_day: str


@dataclass(frozen=True)
class StateSpace:
    """Bins and vocabularies, and the encoding between states and indices.

    Args:
        bins: bins per trait over [0, 100], 1 to 10.
        content_types, moods, times_of_day: distinct names; their order is the table's order.
        cuts: the scores at which the second bin and each further one begin, ascending whole
            numbers above 0 and below 100; none: bins of equal width.

    Raises:
        ValueError: if bins or cuts are out of range, a vocabulary is empty or repeats a name, or
            there are more states than an int32 can number.
    """

    bins: int = 5
    content_types: tuple[str, ...] = CONTENT_TYPES
    moods: tuple[str, ...] = MOODS
    times_of_day: tuple[str, ...] = TIMES_OF_DAY
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= 10:
            raise ValueError(f"bins must be from 1 to 10, not {self.bins}")
        if self.cuts and not (
            len(self.cuts) == self.bins - 1
            and list(self.cuts) == sorted(set(self.cuts))
            and 0 < self.cuts[0] <= self.cuts[-1] < 100
        ):
            raise ValueError(f"cuts must be {self.bins - 1} ascending whole numbers: {self.cuts}")
        for name in ("content_types", "moods", "times_of_day"):
            words = getattr(self, name)
            if not words or len(set(words)) != len(words):
                raise ValueError(f"{name} must be distinct names, at least one: {words}")
        if self.n_states > np.iinfo(np.int32).max:
            raise ValueError(f"{self.n_states} states are more than an int32 can number")

    @cached_property
    def n_cells(self) -> int:
        """Number of personality cells, bins ** 5."""
        return int(self.bins ** len(TRAITS))

    @cached_property
    def n_contexts(self) -> int:
        """Number of contexts: content types x moods x times of day."""
        return len(self.content_types) * len(self.moods) * len(self.times_of_day)

    @cached_property
    def n_states(self) -> int:
        """Number of states: cells x contexts."""
        return self.n_cells * self.n_contexts

    @cached_property
    def context_shape(self) -> tuple[int, int, int]:
        """Numbers of content types, moods and times of day."""
        return len(self.content_types), len(self.moods), len(self.times_of_day)

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Bounds of the bins, from 0 to 100, one more than there are bins."""
        if self.cuts:
            return (0.0, *map(float, self.cuts), 100.0)
        return (*(place * (100.0 / self.bins) for place in range(self.bins)), 100.0)

    @cached_property
    def midpoints(self) -> NDArray[np.float64]:
        """Midpoints of the bins, float64 (bins,), read-only."""
        edges = np.array(self.edges)
        middle: NDArray[np.float64] = (edges[1:] + edges[:-1]) / 2.0
        middle.setflags(write=False)
        return middle

    @cached_property
    def _step(self) -> float:
        """Width of the steps in which `_bins` counts."""
        return 1.0 if self.cuts else 100.0 / self.bins

    @cached_property
    def _bins(self) -> tuple[int, ...]:
        """The bin of each step; a score of 100 falls into the last one."""
        if self.cuts:
            return tuple(bisect_right(self.cuts, score) for score in range(101))
        return (*range(self.bins), self.bins - 1)

    @cached_property
    def _contexts(self) -> dict[Context, int]:
        names = (
            Context(content_type, mood, time_of_day)
            for content_type in self.content_types
            for mood in self.moods
            for time_of_day in self.times_of_day
        )
        return {context: index for index, context in enumerate(names)}

    def discretize(self, score: float) -> int:
        """Returns the bin of a trait score; ``min(int(score / (100 / bins)), bins - 1)`` if equal.

        Bins are closed below and open above, and 100 belongs to the last one.

        Raises:
            ValueError: unless 0 <= score <= 100; NaN and infinities are out of range.
        """
        if not 0.0 <= score <= 100.0:
            raise ValueError(f"a trait score must be from 0 to 100, not {score}")
        # In float64, as `index_columns`: a float32 score divided by a float stays float32.
        return self._bins[int(float(score) / self._step)]

    def cell(self, traits: Sequence[float]) -> int:
        """Returns the cell of five scores in the order of `TRAITS`. Raises as `discretize`."""
        o, c, e, a, n = map(float, traits)
        # To compare floats with floats takes half as long as with whole numbers.
        if not (
            0.0 <= o <= 100.0
            and 0.0 <= c <= 100.0
            and 0.0 <= e <= 100.0
            and 0.0 <= a <= 100.0
            and 0.0 <= n <= 100.0
        ):
            raise ValueError(f"trait scores must be from 0 to 100, not {traits}")
        step = self._step
        by_o, by_c, by_e, by_a, by_n = self._cell_parts
        return (
            by_o[int(o / step)]
            + by_c[int(c / step)]
            + by_e[int(e / step)]
            + by_a[int(a / step)]
            + by_n[int(n / step)]
        )

    def cells(self, traits: NDArray[np.float64]) -> NDArray[np.int64]:
        """Returns the cells of n people, scores (n, 5) -> int64 (n,). Raises as `discretize`."""
        if not (traits.min(initial=0.0) >= 0.0 and traits.max(initial=0.0) <= 100.0):
            raise ValueError("trait scores must be from 0 to 100")
        return self._cells_in_range(traits)

    def _cells_in_range(self, traits: NDArray[np.float64]) -> NDArray[np.int64]:
        bins, places = self._cell_arrays
        cells: NDArray[np.int64] = bins[(traits / self._step).astype(np.intp)] @ places
        return cells

    def cells_if_known(self, traits: ArrayLike) -> NDArray[np.int64]:
        """Returns the cells of scores (n, 5), int64 (n,); NO_CELL if one is NaN or out of range."""
        scores = np.asarray(traits, dtype=np.float64).reshape(-1, len(TRAITS))
        with np.errstate(invalid="ignore"):
            in_range = (scores >= 0.0) & (scores <= 100.0)
        if in_range.all():
            return self._cells_in_range(scores)
        cells = self._cells_in_range(np.where(in_range, scores, 0.0))
        return np.where(in_range.all(axis=1), cells, NO_CELL)

    @cached_property
    def _cell_parts(self) -> tuple[tuple[int, ...], ...]:
        """Summand of a cell for each step of each trait."""
        return tuple(
            tuple(b * self.bins**place for b in self._bins)
            for place in reversed(range(len(TRAITS)))
        )

    @cached_property
    def _cell_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The bin of each step, and the place value of each trait, shape (5,)."""
        places = self.bins ** np.arange(len(TRAITS), dtype=np.int64)[::-1]
        return np.array(self._bins, dtype=np.int64), places

    def context(self, context: Context) -> int:
        """Returns the index of a context.

        Raises:
            KeyError: if the vocabularies do not have it.
        """
        return self._contexts[context]

    def index(self, traits: Sequence[float], context: Context) -> int:
        """Returns the state index, 0 to n_states - 1. Raises as `cell` and `context`."""
        return self.cell(traits) * self.n_contexts + self._contexts[context]

    def decode(self, state: int) -> tuple[tuple[int, ...], Context]:
        """Returns the trait bins and the context of a state index.

        Raises:
            IndexError: unless 0 <= state < n_states.
        """
        if not 0 <= state < self.n_states:
            raise IndexError(f"state {state} is outside 0 to {self.n_states - 1}")
        cell, context = divmod(state, self.n_contexts)
        bins = np.unravel_index(cell, (self.bins,) * len(TRAITS))
        content, mood, time = np.unravel_index(context, self.context_shape)
        return tuple(int(b) for b in bins), Context(
            self.content_types[content], self.moods[mood], self.times_of_day[time]
        )

    def index_columns(
        self,
        traits: ArrayLike,
        content_type: NDArray[np.integer[Any]],
        mood: NDArray[np.integer[Any]],
        time_of_day: NDArray[np.integer[Any]],
    ) -> NDArray[np.int32]:
        """Returns the state indices of n rows.

        Args:
            traits: scores, shape (n, 5); NaN if unknown.
            content_type, mood, time_of_day: positions in the vocabularies, shape (n,); negative
                if the vocabulary has no such name.

        Returns:
            int32 (n,): the state, `UNKNOWN_PERSONALITY` if a score is NaN or out of range, or
            `OUT_OF_VOCABULARY`, which takes precedence.
        """
        cell = self.cells_if_known(traits).astype(np.int32)
        _, moods, times = self.context_shape
        context = (content_type.astype(np.int32) * moods + mood) * times + time_of_day
        state = np.where(cell != NO_CELL, cell * self.n_contexts + context, UNKNOWN_PERSONALITY)
        foreign = (content_type < 0) | (mood < 0) | (time_of_day < 0)
        return np.where(foreign, OUT_OF_VOCABULARY, state).astype(np.int32)

    def to_dict(self) -> dict[str, Any]:
        """Returns the space as plain JSON types, which `from_dict` reads."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "StateSpace":
        """Makes a space from the result of `to_dict`. Raises ValueError or KeyError on others."""
        if type(data["bins"]) is not int:
            raise ValueError(f"bins must be a whole number, not {data['bins']!r}")
        vocabularies = {}
        for name in ("content_types", "moods", "times_of_day"):
            words = data[name]
            if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
                raise ValueError(f"{name} must be a list of names, not {words!r}")
            vocabularies[name] = tuple(words)
        cuts = data.get("cuts", ())
        if not isinstance(cuts, list | tuple) or not all(type(cut) is int for cut in cuts):
            raise ValueError(f"cuts must be a list of whole numbers, not {cuts!r}")
        return cls(bins=data["bins"], **vocabularies, cuts=tuple(cuts))


def serving_space(space: StateSpace, bins: int) -> StateSpace:
    """Returns the space on which a policy is served that is learned on another one.

    Its cuts contain 40 and 60, between which the rules count a trait as neither low nor high, so
    that it can serve the rules exactly. What is left of the scale is cut evenly, an odd number of
    bins with one of them in the middle, an even one with two.

    Args:
        space: the space of learning.
        bins: bins a trait, 3 to 10; 0 for those of learning.

    Raises:
        ValueError: if bins are out of range.
    """
    if bins == 0:
        return space
    if not 3 <= bins <= 10:
        raise ValueError(f"serving bins must be from 3 to 10, or 0, not {bins}")
    middle = 2 - bins % 2
    side = (bins - middle) // 2
    below = [round(40 * place / side) for place in range(1, side + 1)]
    centre = [50] if middle == 2 else []
    above = [100 - cut for cut in reversed(below)]
    return replace(space, bins=bins, cuts=(*below, *centre, *above))


def of_cells(of_bins: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Returns the values of each cell, (n_cells, 5), from those of each trait's bins, (bins,)."""
    return np.stack([one.ravel() for one in np.meshgrid(*of_bins, indexing="ij")], axis=1)


def nearest_cells(space: StateSpace, other: StateSpace) -> NDArray[np.int64]:
    """Returns the cell of a space in which each cell of another one has its middle, (n_cells,)."""
    return space.cells(of_cells([other.midpoints] * len(TRAITS)))


def nearest_states(space: StateSpace, other: StateSpace) -> NDArray[np.int64]:
    """Returns the state of a space for each state of another one with the same contexts."""
    cells = nearest_cells(space, other)[:, None]
    return (cells * space.n_contexts + np.arange(space.n_contexts)).ravel()


@lru_cache(maxsize=4)
def context_one_hots(space: StateSpace) -> tuple[NDArray[np.float64], ...]:
    """Returns one-hot encodings of every context of a space, as read-only float64 arrays.

    Returns:
        Content types (n_contexts, n_content_types), moods (n_contexts, n_moods), times of day
        (n_contexts, n_times), and pairs of content type and mood, the content type slow.
    """
    contents, moods, times = space.context_shape
    content, mood, time = np.unravel_index(np.arange(space.n_contexts), space.context_shape)
    encoded = (
        np.eye(contents)[content],
        np.eye(moods)[mood],
        np.eye(times)[time],
        np.eye(contents * moods)[content * moods + mood],
    )
    for array in encoded:
        array.setflags(write=False)
    return encoded


def time_of_day(hour: int) -> str:
    """Returns the name of the time of day of a local hour, 0 to 23.

    Morning from 5, afternoon from 12, evening from 17, night from 22.
    """
    if 5 <= hour < 12:
        return "morning"
    if 12 <= hour < 17:
        return "afternoon"
    if 17 <= hour < 22:
        return "evening"
    return "night"
