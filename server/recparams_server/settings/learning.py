"""Settings of the state space, the reward, the learner and its schedule."""

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from recparams_rl.learners.hyperparameters import SCHEDULES, Hyperparameters
from recparams_rl.learners.registry import DEFAULT_ALGORITHM, LEARNERS, settings_of
from recparams_rl.objectives import Objectives
from recparams_rl.reward import RewardWeights
from recparams_rl.smoothing import Smoothing
from recparams_rl.state import StateSpace, serving_space
from recparams_server.settings.fields import Names, OptionalText, Part, configured, settings_from
from recparams_server.settings.schedule import Schedule, parse


class SpaceSettings(Part):
    """Personality bins and vocabularies of the state space."""

    bins: int = Field(StateSpace.bins, ge=1, le=10, description="Bins per personality trait.")
    content_types: Names = Field(
        StateSpace.content_types, description="Content types, comma separated."
    )
    moods: Names = Field(StateSpace.moods, description="Moods, comma separated.")
    times_of_day: Names = Field(
        StateSpace.times_of_day, description="Times of day, comma separated."
    )


if TYPE_CHECKING:
    RewardSettings = SpaceSettings
else:
    RewardSettings = create_model(
        "RewardSettings", __base__=SpaceSettings, **settings_from(RewardWeights, "reward_")
    )


class LearningSettings(RewardSettings):
    """The state space, the reward, the learner and its schedule."""

    objective_engagement: float = Field(
        Objectives.engagement, description="Weight of the reactions' reward among the objectives."
    )
    objective_diversity: float = Field(
        Objectives.diversity,
        description="Reward of the most diverse recommendation over the most focused.",
    )
    objective_novelty: float = Field(
        Objectives.novelty,
        description="Reward of the most exploratory recommendation over the most familiar.",
    )
    algorithm: str = Field(
        DEFAULT_ALGORITHM,
        description=f"What learns: {', '.join(LEARNERS)}. After a change the next run has to be a "
        "rebuild.",
    )
    algorithm_parameters: Names = Field(
        (),
        description="What the algorithm has besides the settings below, as in temperature=0.1, "
        "comma separated.",
    )
    training_engine: Literal["process", "ray"] = Field(
        "process",
        description="What does the work of a run: process (one, with training_threads threads), or "
        "ray (a cluster; needs the extra ray and an algorithm with a table).",
    )
    ray_address: OptionalText = Field(
        None,
        description="The Ray cluster, as in ray://ray-head:10001. Absent: one of its own on this "
        "machine, for the time of a run.",
    )
    ray_shards: int = Field(
        0,
        ge=0,
        le=3125,
        description="Parts that the work is dealt into. 0: one for each processor.",
    )
    learning_rate: float = Field(
        Hyperparameters.learning_rate, description="Step size of an update, above 0 and up to 1."
    )
    discount_factor: float = Field(
        Hyperparameters.discount_factor,
        description="Value of the next step's reward, from 0 up to but not 1.",
    )
    exploration_rate: float = Field(
        Hyperparameters.exploration_rate,
        description="Exploration of the schedule before any training, 0 to 1.",
    )
    exploration_decay: float = Field(
        Hyperparameters.exploration_decay,
        description="Factor on it for each thousand interactions trained.",
    )
    min_exploration_rate: float = Field(
        Hyperparameters.min_exploration_rate, description="Its floor, 0 to 1."
    )
    exploration_schedule: str = Field(
        Hyperparameters.exploration_schedule, description=f"How it falls: {', '.join(SCHEDULES)}."
    )
    session_gap_seconds: float = Field(
        Hyperparameters.session_gap_seconds, description="Longest pause within one session."
    )
    settling_seconds: float | None = Field(
        Hyperparameters.settling_seconds,
        description="Rest of an interaction before it is trained. Absent: the session gap.",
    )
    days_back: int = Field(
        7,
        ge=1,
        le=3650,
        description="Window of a rebuild, days; an incremental run reads all that is due.",
    )
    min_interactions_per_user: int = Field(
        5, ge=1, description="People with fewer untrained interactions wait for a later run."
    )
    schedule: OptionalText = Field(
        None,
        description="When to train without being asked: a cron expression (0 1 * * 1 is Mondays at "
        "01:00) or an interval (6h; units s, m, h and d). Absent: never.",
    )
    schedule_time_zone: str = Field(
        "UTC", description="Time zone of the cron expression, such as Europe/Berlin."
    )
    schedule_grace_seconds: float = Field(
        3600.0,
        ge=1,
        description="How late a scheduled run may still start where the servers were down or "
        "another run was under way; later it is left out.",
    )
    training_threads: int = Field(
        max(1, (os.cpu_count() or 1) - 1), ge=1, le=256, description="Threads of a training run."
    )
    training_memory_mb: int = Field(
        2048,
        ge=64,
        description="Memory of a training run, megabytes: interactions beyond it go to a temporary "
        "file in the data directory and are learned one part after another, with the same result. "
        "It cannot be less than publishing a table takes. dqn and actor_critic keep all in memory, "
        "and each worker of Ray its shards.",
    )
    caution: float = Field(
        Smoothing.caution,
        ge=0,
        description="Posterior deviations that an action must be better than the rules' by, after "
        "many interactions; four times as many at first.",
    )
    shrinkage: float = Field(
        Smoothing.shrinkage,
        gt=0,
        description="Visits that what is learned from others is worth against a state's own.",
    )
    foresight: float = Field(
        Smoothing.foresight,
        ge=0,
        le=1,
        description="Weight of what follows an action, beyond its immediate reward, when a version "
        "is published.",
    )
    serving_bins: int = Field(
        Smoothing.serving_bins,
        ge=0,
        le=10,
        description="Bins per trait of what is served, 3 to 10; 0: those of learning.",
    )

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        self.serving_space()
        self.hyperparameters()
        self.reward_weights()
        self.objectives()
        self.training_schedule()
        return self

    def space(self) -> StateSpace:
        """Returns the configured state space."""
        return StateSpace(self.bins, self.content_types, self.moods, self.times_of_day)

    def serving_space(self) -> StateSpace:
        """Returns the state space on which policies are served."""
        return serving_space(self.space(), self.serving_bins)

    def hyperparameters(self) -> Hyperparameters:
        """Returns the configured hyperparameters of the configured algorithm."""
        try:
            pairs = (part.split("=") for part in self.algorithm_parameters)
            parameters = {name.strip(): float(value) for name, value in pairs}
        except ValueError:
            raise ValueError("algorithm_parameters must be as in temperature=0.1,ridge=3") from None
        return settings_of(self.algorithm, {**self.common_hyperparameters(), **parameters})

    def common_hyperparameters(self) -> dict[str, Any]:
        """Returns the configured hyperparameters that every algorithm has, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Hyperparameters)}

    def reward_weights(self) -> RewardWeights:
        """Returns the configured weights of the reward."""
        return configured(RewardWeights, self, "reward_")

    def objectives(self) -> Objectives:
        """Returns the configured weights of the objectives."""
        return configured(Objectives, self, "objective_")

    def training_schedule(self) -> Schedule | None:
        """Returns the configured schedule of training, or None without one."""
        return None if self.schedule is None else parse(self.schedule, self.schedule_time_zone)

    def smoothing(self) -> Smoothing:
        """Returns the configured smoothing."""
        return configured(Smoothing, self)
