"""Settings of learning: states, rewards, the learner and its schedule."""

import os
from dataclasses import fields
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from rl.learners.hyperparameters import EXPONENTIAL, SCHEDULES, Hyperparameters
from rl.learners.registry import DEFAULT_ALGORITHM, LEARNERS, settings_of
from rl.objectives import Objectives
from rl.reward import RewardWeights
from rl.smoothing import Smoothing
from rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, StateSpace
from server.settings.fields import Names, OptionalText
from server.settings.schedule import Schedule, parse


class LearningSettings(BaseModel):
    """Settings of states, rewards, the learner and its schedule."""

    bins: int = Field(5, ge=1, le=10, description="Bins per personality trait.")
    content_types: Names = Field(CONTENT_TYPES, description="Content types, comma separated.")
    moods: Names = Field(MOODS, description="Moods, comma separated.")
    times_of_day: Names = Field(TIMES_OF_DAY, description="Times of day, comma separated.")
    reward_like: float = Field(1.0, description="Reward of a like.")
    reward_dislike: float = Field(-1.0, description="Reward of a dislike.")
    reward_complete: float = Field(0.5, description="Reward of a completion.")
    reward_skip: float = Field(-0.3, description="Reward of a skip.")
    reward_share: float = Field(0.8, description="Reward of a share.")
    reward_impression: float = Field(0.0, description="Reward of an impression.")
    reward_completion_rate: float = Field(0.5, description="Factor on the completion rate, 0 to 1.")
    reward_mood_change: float = Field(0.5, description="Factor on the mood change, -1 to 1.")
    objective_engagement: float = Field(
        1.0, description="Weight of the reactions' reward among the objectives."
    )
    objective_diversity: float = Field(
        0.0, description="Reward of the most diverse recommendation over the most focused."
    )
    objective_novelty: float = Field(
        0.0, description="Reward of the most exploratory recommendation over the most familiar."
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
    learning_rate: float = Field(0.1, description="Step size of an update, above 0 and up to 1.")
    discount_factor: float = Field(
        0.95, description="Value of the next step's reward, from 0 up to but not 1."
    )
    exploration_rate: float = Field(
        0.3, description="Exploration of the schedule before any training, 0 to 1."
    )
    exploration_decay: float = Field(
        0.995, description="Factor on it for each thousand interactions trained."
    )
    min_exploration_rate: float = Field(0.05, description="Its floor, 0 to 1.")
    exploration_schedule: str = Field(
        EXPONENTIAL, description=f"How it falls: {', '.join(SCHEDULES)}."
    )
    session_gap_seconds: float = Field(1800.0, description="Longest pause within one session.")
    settling_seconds: float | None = Field(
        None,
        description="Rest of an interaction before it is trained. Absent: the session gap.",
    )
    days_back: int = Field(7, ge=1, le=3650, description="Default window of a training run, days.")
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
    kernel_width: float = Field(
        20.0, gt=0, description="How far a state borrows from similar people, in trait points."
    )
    shrinkage: float = Field(
        8.0, gt=0, description="Visits that what is borrowed is worth against a state's own."
    )
    rule_bonus: float = Field(
        0.6, ge=0, description="Advantage of the rules' action where there is no data, in reward."
    )

    @model_validator(mode="after")
    def _check_learning(self) -> Self:
        self.space()
        self.hyperparameters()
        self.reward_weights()
        self.objectives()
        self.training_schedule()
        return self

    def space(self) -> StateSpace:
        """The configured state space."""
        return StateSpace(self.bins, self.content_types, self.moods, self.times_of_day)

    def hyperparameters(self) -> Hyperparameters:
        """The configured settings of the learner."""
        try:
            pairs = (part.split("=") for part in self.algorithm_parameters)
            parameters = {name.strip(): float(value) for name, value in pairs}
        except ValueError:
            raise ValueError("algorithm_parameters must be as in temperature=0.1,ridge=3") from None
        return settings_of(self.algorithm, {**self.common_hyperparameters(), **parameters})

    def common_hyperparameters(self) -> dict[str, Any]:
        """The configured settings that every algorithm has, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Hyperparameters)}

    def reward_weights(self) -> RewardWeights:
        """The configured reward."""
        return RewardWeights(
            like=self.reward_like,
            dislike=self.reward_dislike,
            complete=self.reward_complete,
            skip=self.reward_skip,
            share=self.reward_share,
            impression=self.reward_impression,
            completion_rate=self.reward_completion_rate,
            mood_change=self.reward_mood_change,
        )

    def objectives(self) -> Objectives:
        """The configured weights of the objectives."""
        return Objectives(
            self.objective_engagement, self.objective_diversity, self.objective_novelty
        )

    def training_schedule(self) -> Schedule | None:
        """When training runs by itself, or None."""
        return None if self.schedule is None else parse(self.schedule, self.schedule_time_zone)

    def smoothing(self) -> Smoothing:
        """The configured smoothing."""
        return Smoothing(self.kernel_width, self.shrinkage, self.rule_bonus)
