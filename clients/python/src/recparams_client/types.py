"""Arguments and results of the client, as plain frozen dataclasses."""

import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal
from uuid import uuid4

ContentType = Literal["music", "video", "game"]
Mood = Literal["neutral", "happy", "sad", "anxious", "calm", "relaxed", "energetic", "stressed"]
TimeOfDay = Literal["morning", "afternoon", "evening", "night"]
Reaction = Literal["like", "dislike", "complete", "skip", "share", "impression"]
Energy = Literal["low", "medium", "high"]
Diversity = Literal["focused", "balanced", "diverse"]
Novelty = Literal["familiar", "mixed", "exploratory"]
PolicyArm = Literal["rl", "rule_based", "previous"]
Source = Literal["learned", "borrowed", "rule_based", "exploration"]


@dataclass(frozen=True)
class PersonalityProfile:
    """Big Five scores, each from 0 to 100. Warns of scores that look as if they were from 0 to 1.

    Raises:
        TypeError: a score is not a number.
    """

    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float

    def __post_init__(self) -> None:
        scores = vars(self).values()
        try:
            is_tiny = max(scores) <= 1 and any(0 < score < 1 for score in scores)
        except TypeError:
            raise TypeError(f"scores must be numbers from 0 to 100, not {(*scores,)}") from None
        if is_tiny:
            warnings.warn(
                f"scores are from 0 to 100, and these look as if from 0 to 1: {(*scores,)}",
                stacklevel=3,
            )


def check_user_id(value: object) -> None:
    """Raises TypeError if a user id is no str."""
    if not isinstance(value, str):
        raise TypeError(f"user_id must be str, not {type(value).__name__}: str({value!r})")


def check_profile(value: object) -> None:
    """Raises TypeError if a profile is none, as a dict of scores is not."""
    if not isinstance(value, PersonalityProfile):
        raise TypeError(
            f"personality must be a PersonalityProfile, not {type(value).__name__}; of a dict of "
            "scores it is PersonalityProfile(**scores)"
        )


@dataclass(frozen=True)
class RecommendationParams:
    """Query parameters for a catalogue API.

    Attributes:
        min_energy, max_energy: 0 to 1.
        valence: 0 to 1.
        genre_count: 1 or more.
        exploration_rate: 0 to 1.
        popularity_min, popularity_max: 0 to 100.
    """

    min_energy: float
    max_energy: float
    valence: float
    genre_count: int
    exploration_rate: float
    popularity_min: int
    popularity_max: int

    def as_dict(self) -> dict[str, float]:
        """Returns the parameters by name, as in ``search(**params.as_dict())``."""
        return asdict(self)


@dataclass(frozen=True)
class DecisionRequest:
    """One person in one context.

    Attributes:
        user_id: 1 to 128 characters.
        content_type: "music", "video" or "game".
        mood: "neutral", "happy", "sad", "anxious", "calm", "relaxed", "energetic", "stressed".
        time_of_day: "morning", "afternoon", "evening" or "night", in the person's place.
        timestamp: instead of time_of_day: an aware datetime in the person's time zone.
        personality: the person's scores; None takes those the server has stored.

    Raises:
        TypeError: user_id or personality is of another type.
    """

    user_id: str
    content_type: ContentType
    mood: Mood = "neutral"
    time_of_day: TimeOfDay | None = None
    timestamp: datetime | None = None
    personality: PersonalityProfile | None = None

    def __post_init__(self) -> None:
        check_user_id(self.user_id)
        if self.personality is not None:
            check_profile(self.personality)


@dataclass(frozen=True)
class Recommendation:
    """A decision.

    Attributes:
        params: parameters to pass to a catalogue API.
        energy, diversity, novelty: the action behind them, as in "low", "diverse", "mixed".
        decision_token: send it back with the reaction; empty in a fallback.
        model_version: the version that decided; 0 is the hand-written rules.
        policy_arm: "rl", "previous" or "rule_based".
        propensity: probability with which this action was chosen, above 0 and up to 1.
        source: "learned", "borrowed", "rule_based" or "exploration".
        fallback_reason: the reason for which the rules stood in, as in "no_model", or empty.
        fallback_detail: what gRPC said, if this library answered; otherwise empty.
    """

    params: RecommendationParams
    energy: Energy
    diversity: Diversity
    novelty: Novelty
    decision_token: bytes
    model_version: int
    policy_arm: PolicyArm
    propensity: float
    source: Source
    fallback_reason: str
    fallback_detail: str = field(default="", compare=False)

    @property
    def is_fallback(self) -> bool:
        """True if this library answered because the server did not."""
        return self.fallback_reason.startswith("client_")


def _new_id() -> str:
    return uuid4().hex


@dataclass(frozen=True)
class Interaction:
    """A person's reaction to one recommended item.

    Attributes:
        user_id: 1 to 128 characters.
        decision_token: that of the decision behind it. An empty one, of a fallback, cannot be
            recorded.
        reactions: "like", "dislike", "complete", "skip", "share", "impression".
        completion_rate: share of the item that was consumed, 0 to 1.
        mood_change: -1 to 1.
        occurred_at: an aware datetime; None is the time at which the server receives it.
        interaction_id: unique; keep it when you send the same interaction again.
    """

    user_id: str
    decision_token: bytes
    reactions: Collection[Reaction] = ()
    completion_rate: float | None = None
    mood_change: float | None = None
    occurred_at: datetime | None = None
    interaction_id: str = field(default_factory=_new_id)


@dataclass(frozen=True)
class RecordResult:
    """The numbers of interactions that are stored now, and that were stored before."""

    recorded: int
    duplicates: int
