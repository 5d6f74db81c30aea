"""Interactions that were checked, on their way to the store."""

from datetime import datetime
from typing import NamedTuple

from recparams_server.contract.vocabulary import Traits


class Choice(NamedTuple):
    """The decision behind an interaction. None is unknown.

    Attributes:
        content_type, mood, time_of_day: enum numbers of the contract.
        action: index, 0 to 26.
        traits: the five scores, 0 to 100.
        propensity: probability with which the action was chosen, above 0 and up to 1.
        model_version: the version that decided; 0 is the rules.
        policy_arm, source: enum numbers of the contract.
        decision_id: unique to the decision.
        decided_at: time of the decision.
        activation_id: the activation that was served.
    """

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


class NewInteraction(NamedTuple):
    """A valid interaction. None was not reported.

    Attributes:
        interaction_id: unique; one that is stored already is a duplicate.
        user_id: 1 to 128 characters.
        occurred_at: aware.
        reactions: mask, bit i for the i-th of `recparams_rl.reward.REACTIONS`.
        completion_rate: 0 to 1.
        mood_change: -1 to 1.
        choice: the decision behind it.
    """

    interaction_id: str
    user_id: str
    occurred_at: datetime
    reactions: int
    completion_rate: float | None
    mood_change: float | None
    choice: Choice
