"""Hyperparameters that every algorithm has."""

from dataclasses import asdict, dataclass
from typing import Any

EXPONENTIAL, LINEAR, INVERSE, CONSTANT = "exponential", "linear", "inverse", "constant"
SCHEDULES = (EXPONENTIAL, LINEAR, INVERSE, CONSTANT)


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError, naming the field, unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low:g} to {high:g}, not {value}")


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of a learner and of the exploration schedule of its policies.

    Args:
        learning_rate: step size, above 0 and up to 1.
        discount_factor: value of the next step's reward, 0 up to but not 1.
        exploration_rate: probability of a random action before any training, 0 to 1.
        exploration_decay: factor on it for each thousand interactions trained, above 0 up to 1.
        min_exploration_rate: its floor, 0 to exploration_rate.
        exploration_schedule: one of SCHEDULES; the factor on exploration_rate after n thousand
            interactions, with d = exploration_decay, is d^n, max(0, 1 - (1 - d) n),
            1 / (1 + (1 - d) n) or 1.
        session_gap_seconds: longest pause within an episode, above 0.
        settling_seconds: rest of an interaction before it is trained, 0 or more; None:
            session_gap_seconds.

    Raises:
        ValueError: if a value is out of range; its message begins with the field's name.
    """

    learning_rate: float = 0.1
    discount_factor: float = 0.95
    exploration_rate: float = 0.3
    exploration_decay: float = 0.995
    min_exploration_rate: float = 0.05
    session_gap_seconds: float = 1800.0
    settling_seconds: float | None = None
    exploration_schedule: str = EXPONENTIAL

    def __post_init__(self) -> None:
        longest = 366 * 86400.0
        for name, valid, range_ in (
            ("learning_rate", 0 < self.learning_rate <= 1, "above 0 and up to 1"),
            ("discount_factor", 0 <= self.discount_factor < 1, "from 0 up to but not 1"),
            ("exploration_rate", 0 <= self.exploration_rate <= 1, "from 0 to 1"),
            ("exploration_decay", 0 < self.exploration_decay <= 1, "above 0 and up to 1"),
            (
                "min_exploration_rate",
                0 <= self.min_exploration_rate <= self.exploration_rate,
                "from 0 to exploration_rate",
            ),
            ("session_gap_seconds", 0 < self.session_gap_seconds <= longest, "above 0, to a year"),
            ("settling_seconds", 0 <= self.settling <= longest, "from 0 to a year"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {range_}, not {getattr(self, name)}")
        if self.exploration_schedule not in SCHEDULES:
            names = ", ".join(SCHEDULES)
            raise ValueError(
                f"exploration_schedule must be one of {names}, not {self.exploration_schedule!r}"
            )

    @property
    def settling(self) -> float:
        """Seconds that an interaction rests before it is trained."""
        return self.session_gap_seconds if self.settling_seconds is None else self.settling_seconds

    def epsilon(self, interactions_trained: int) -> float:
        """Returns the exploration rate after a number of interactions, 0 to 1."""
        n, lost = interactions_trained / 1000, 1.0 - self.exploration_decay
        decayed: float = self.exploration_decay**n
        factor = {
            EXPONENTIAL: decayed,
            LINEAR: max(0.0, 1.0 - lost * n),
            INVERSE: 1.0 / (1.0 + lost * n),
            CONSTANT: 1.0,
        }[self.exploration_schedule]
        return max(self.min_exploration_rate, self.exploration_rate * factor)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON types."""
        return asdict(self)
