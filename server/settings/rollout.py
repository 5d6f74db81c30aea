"""Settings of rollouts: gates, the ramp and the comparison of arms."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from rl.evaluation.gates import Thresholds
from rl.evaluation.sequential import ALPHA, BURN_IN
from server.settings.fields import configured


class RolloutSettings(BaseModel):
    """Settings of gates, the ramp and the comparison of arms."""

    gates: Literal["enforce", "report"] = Field(
        "enforce",
        description="Whether a version that does not pass the gates is held back, or only noted.",
    )
    gate_interactions: int = Field(
        Thresholds.interactions,
        ge=0,
        description="Least number of interactions behind a version that is served.",
    )
    gate_average_reward: float = Field(
        Thresholds.average_reward,
        description="What the average reward of the interactions just trained must exceed.",
    )
    gate_improvement_tolerance: float = Field(
        Thresholds.improvement_tolerance,
        ge=0,
        description="How much worse than the active policy, in reward, a version may be at the "
        "lower confidence bound of the difference on interactions it had not seen.",
    )
    gate_confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence of that lower bound (one-sided)."
    )
    gate_q_bound_factor: float = Field(
        Thresholds.q_bound_factor,
        gt=0,
        description="Largest |Q| as a multiple of its theoretical bound.",
    )
    gate_coverage_share: float = Field(
        Thresholds.coverage_share,
        ge=0,
        le=1,
        description="Least share of the active version's visited states.",
    )
    holdout_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Latest share of a run's interactions on which a version is evaluated before "
        "it is trained on them too.",
    )
    rollout: Literal["off", "staged"] = Field(
        "off",
        description="Whether a version that passes the gates is served to everybody, or to the "
        "first step of the ramp.",
    )
    rollout_steps: str = Field(
        "canary=10,half=50,full=100",
        description="Steps of the ramp, name=percent, comma separated, rising to 100.",
    )
    watch_seconds: float = Field(
        30.0,
        gt=0,
        description="How often the arms of a rollout are compared; a version that is worse is "
        "taken back.",
    )
    experiment_alpha: float = Field(
        ALPHA,
        gt=0,
        lt=1,
        description="Most probability that a comparison of arms ever errs.",
    )
    experiment_burn_in: int = Field(
        BURN_IN, ge=2, description="People in each arm before a comparison says anything."
    )

    @model_validator(mode="after")
    def _check_rollout(self) -> Self:
        self.steps()
        return self

    def thresholds(self) -> Thresholds:
        """Returns the configured thresholds of the gates."""
        return configured(Thresholds, self, "gate_")

    def steps(self) -> dict[str, float]:
        """Returns the steps of the ramp: percentages by name, rising to 100."""
        try:
            pairs = (part.split("=") for part in self.rollout_steps.split(","))
            steps = {name.strip(): float(percent) for name, percent in pairs}
        except ValueError:
            raise ValueError("rollout_steps must be as in canary=10,half=50,full=100") from None
        values = list(steps.values())
        if values != sorted(set(values)) or not values[0] > 0 or values[-1] != 100:
            raise ValueError("rollout_steps must rise from above 0 to 100")
        if "" in steps or "next" in steps:
            raise ValueError('rollout_steps need names, and "next" is not one of them')
        return steps
