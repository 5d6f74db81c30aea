"""Settings of gates, rollouts and the comparison of arms."""

from typing import Literal, Self

from pydantic import Field, model_validator

from recparams_rl.evaluation.gates import Thresholds
from recparams_rl.evaluation.rollout import DeliveryRules
from recparams_rl.evaluation.sequential import ALPHA, BURN_IN
from recparams_server.settings.fields import Part, configured


class RolloutSettings(Part):
    """Settings of gates, rollouts and the comparison of arms."""

    gates: Literal["enforce", "report"] = Field(
        "enforce",
        description="Whether a version that does not pass the gates is refused, or only noted.",
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
    gate_confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence (one-sided) with which a version is shown to be worse, or better, "
        "than the active one on interactions it had not seen.",
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
    rollout: Literal["off", "staged", "auto"] = Field(
        "auto",
        description="What becomes of a version that passes the gates: it is served to everybody "
        "(off), or to the people of a first step, from which a person moves it on (staged) or the "
        "service itself does (auto).",
    )
    rollout_steps: str = Field(
        "canary=10,half=50,full=100",
        description="Steps of a rollout, name=percent, comma separated, rising to 100.",
    )
    rollout_step_seconds: float = Field(
        DeliveryRules.step_seconds, ge=0, description="Least time at a step."
    )
    rollout_step_people: int = Field(
        DeliveryRules.step_people,
        ge=0,
        description="Least number of people with an interaction at a step, in each of the two arms "
        "compared.",
    )
    rollout_tolerance: float = Field(
        DeliveryRules.tolerance,
        ge=0,
        description="How much worse than the version before, in reward, a version may still be at "
        "the lower end of its interval to take the next step.",
    )
    rollout_patience_seconds: float = Field(
        DeliveryRules.patience_seconds,
        ge=0,
        description="Time at a step after which a version that still cannot be told from the one "
        "before moves on unless it looks worse; if it stays, a newer one may take its place.",
    )
    holdback_percent: float = Field(
        5.0,
        ge=0,
        le=50,
        description="Share of the people who are always served the rules, the same people through "
        "all rollouts, so that it can be told what learning is worth. In force from the next "
        "change of what is served.",
    )
    holdback_days: int = Field(
        28, ge=1, le=3650, description="Days over which they are compared with the others."
    )
    holdback_look_seconds: float = Field(
        3600.0, gt=0, description="How often they are compared with the others."
    )
    watch_seconds: float = Field(
        60.0,
        gt=0,
        description="How often the arms are compared; a version that is worse is taken back.",
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
        self.delivery_rules()
        return self

    def thresholds(self) -> Thresholds:
        """Returns the configured thresholds of the gates."""
        return configured(Thresholds, self, "gate_")

    def delivery_rules(self) -> DeliveryRules:
        """Returns the configured rules of rollouts."""
        return DeliveryRules(
            steps=(100.0,) if self.rollout == "off" else tuple(self.steps().values()),
            step_seconds=self.rollout_step_seconds,
            step_people=self.rollout_step_people,
            tolerance=self.rollout_tolerance,
            patience_seconds=self.rollout_patience_seconds,
        )

    def steps(self) -> dict[str, float]:
        """Returns the steps of a rollout: percentages by name, rising to 100."""
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
