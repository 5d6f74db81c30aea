"""An interaction that was checked, on its way to the store."""

from dataclasses import dataclass
from datetime import datetime

from server.contract.vocabulary import Traits


@dataclass(frozen=True)
class Choice:
    """What was decided in which state. Numbers are the contract's; None is unknown."""

    content_type: int
    mood: int
    time_of_day: int
    action: int
    traits: Traits | None
    propensity: float | None = None
    model_version: int | None = None
    policy_arm: int | None = None
    source: int | None = None
    decision_id: int | None = None
    decided_at: datetime | None = None
    activation_id: int | None = None


@dataclass(frozen=True)
class NewInteraction:
    """A valid interaction; `reactions` is a mask, None is not reported."""

    interaction_id: str
    user_id: str
    occurred_at: datetime
    reactions: int
    completion_rate: float | None
    mood_change: float | None
    choice: Choice
