"""The action: energy x diversity x novelty, and the recommendation parameters it stands for."""

from dataclasses import asdict, dataclass, fields
from math import isfinite

import numpy as np
from numpy.typing import NDArray

ENERGIES = ("low", "medium", "high")
DIVERSITIES = ("focused", "balanced", "diverse")
NOVELTIES = ("familiar", "mixed", "exploratory")
DIMENSIONS = {"energy": ENERGIES, "diversity": DIVERSITIES, "novelty": NOVELTIES}
"""Levels of each dimension, from the lowest, in the order in which they make up an index."""

N_LEVELS = len(ENERGIES), len(DIVERSITIES), len(NOVELTIES)
N_ACTIONS = len(ENERGIES) * len(DIVERSITIES) * len(NOVELTIES)

ACTION_LEVELS: NDArray[np.int64] = np.array(np.unravel_index(np.arange(N_ACTIONS), N_LEVELS))
"""Level of each action in each dimension, 0 to 2, int64 (3, 27)."""

ACTION_INTENSITIES: NDArray[np.float64] = np.stack(
    [levels / (n - 1) for levels, n in zip(ACTION_LEVELS, N_LEVELS, strict=True)], axis=1
)
"""Level of each action in each dimension as 0 (lowest) to 1 (highest), float64 (27, 3)."""

LEVEL_ONE_HOTS: NDArray[np.float64] = np.hstack(
    [np.eye(n)[levels] for levels, n in zip(ACTION_LEVELS, N_LEVELS, strict=True)]
)
"""One-hot encoding of each action's levels, dimension by dimension, float64 (27, 9)."""


@dataclass(frozen=True)
class RecommendationParams:
    """Query parameters for a catalogue API; None where a logged query did not have one.

    Units: energies, valence and exploration_rate 0 to 1; genre_count 1 or more; popularities 0 to
    100.
    """

    min_energy: float | None = None
    max_energy: float | None = None
    valence: float | None = None
    genre_count: int | None = None
    exploration_rate: float | None = None
    popularity_min: int | None = None
    popularity_max: int | None = None


_ENERGY_PARAMS: dict[str, dict[str, float]] = {
    "low": {"min_energy": 0.0, "max_energy": 0.4, "valence": 0.3},
    "medium": {"min_energy": 0.3, "max_energy": 0.7, "valence": 0.5},
    "high": {"min_energy": 0.6, "max_energy": 1.0, "valence": 0.8},
}
_DIVERSITY_PARAMS: dict[str, dict[str, float]] = {
    "focused": {"genre_count": 1},
    "balanced": {"genre_count": 3},
    "diverse": {"genre_count": 5},
}
_NOVELTY_PARAMS: dict[str, dict[str, float]] = {
    "familiar": {"exploration_rate": 0.1, "popularity_min": 50, "popularity_max": 100},
    "mixed": {"exploration_rate": 0.3, "popularity_min": 25, "popularity_max": 75},
    "exploratory": {"exploration_rate": 0.5, "popularity_min": 0, "popularity_max": 50},
}

_FURTHEST = 1e6
# Width of each parameter's range, so that distances along different parameters compare.
_RANGE = {"genre_count": 4.0, "popularity_min": 100.0, "popularity_max": 100.0}


@dataclass(frozen=True)
class Action:
    """One of the 27 actions. Raises ValueError on an unknown level."""

    energy: str
    diversity: str
    novelty: str

    def __post_init__(self) -> None:
        for name, levels in DIMENSIONS.items():
            if getattr(self, name) not in levels:
                raise ValueError(f"{name} must be one of {levels}, not {getattr(self, name)!r}")

    @property
    def index(self) -> int:
        """``(energy * 3 + diversity) * 3 + novelty``, 0 to 26."""
        return (
            ENERGIES.index(self.energy) * 3 + DIVERSITIES.index(self.diversity)
        ) * 3 + NOVELTIES.index(self.novelty)

    def to_tuple(self) -> tuple[str, str, str]:
        """Returns the names of the levels: energy, diversity, novelty."""
        return self.energy, self.diversity, self.novelty

    @classmethod
    def from_index(cls, index: int) -> "Action":
        """Returns the action of an index. Raises IndexError outside 0 to 26."""
        if not 0 <= index < N_ACTIONS:
            raise IndexError(f"action {index} is outside 0 to {N_ACTIONS - 1}")
        return cls(ENERGIES[index // 9], DIVERSITIES[index // 3 % 3], NOVELTIES[index % 3])

    def to_params(self) -> RecommendationParams:
        """Returns the parameters that this action stands for, every field set."""
        return RecommendationParams(
            **_ENERGY_PARAMS[self.energy],  # type: ignore[arg-type]
            **_DIVERSITY_PARAMS[self.diversity],  # type: ignore[arg-type]
            **_NOVELTY_PARAMS[self.novelty],  # type: ignore[arg-type]
        )

    def to_recommendation_params(self) -> dict[str, float]:
        """Returns its parameters by name, as in ``search(**action.to_recommendation_params())``."""
        return asdict(self.to_params())


ACTIONS = tuple(Action.from_index(index) for index in range(N_ACTIONS))


def infer_action(params: RecommendationParams) -> Action:
    """Returns the action whose parameters are nearest to logged ones, dimension by dimension.

    The distance along a dimension is the sum of squared differences over the fields that are
    given, each divided by its range; ties go to the lower level. Inverts `Action.to_params`. Values
    beyond a million count as a million, so that squares stay numbers.

    Raises:
        ValueError: if a field is not finite, or a dimension has no field at all.
    """
    given = {f.name: getattr(params, f.name) for f in fields(params)}
    given = {name: float(value) for name, value in given.items() if value is not None}
    for name, value in given.items():
        if not isfinite(value):
            raise ValueError(f"{name} must be a finite number, not {value}")
    given = {name: max(-_FURTHEST, min(_FURTHEST, value)) for name, value in given.items()}
    return Action(
        _nearest("energy", _ENERGY_PARAMS, given),
        _nearest("diversity", _DIVERSITY_PARAMS, given),
        _nearest("novelty", _NOVELTY_PARAMS, given),
    )


def _nearest(dimension: str, levels: dict[str, dict[str, float]], given: dict[str, float]) -> str:
    names = [name for name in next(iter(levels.values())) if name in given]
    if not names:
        known = ", ".join(next(iter(levels.values())))
        raise ValueError(f"{dimension} cannot be inferred: at least one of {known} is needed")
    return min(
        levels,
        key=lambda level: sum(
            ((given[name] - levels[level][name]) / _RANGE.get(name, 1.0)) ** 2 for name in names
        ),
    )
