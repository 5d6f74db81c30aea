"""Progressive delivery: where a candidate starts, and when a rollout takes its next step.

Two pure functions decide. `place_candidate` says what becomes of a version that was just trained,
`next_move` what becomes of the version that is being rolled out (after the steps, analysis and
abort of Argo Rollouts and Flagger).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

from recparams_rl.evaluation.gates import Gate
from recparams_rl.evaluation.sequential import Verdict

Outcome = Literal["activated", "started", "waiting", "refused", "stored", "no_change"]
Action = Literal["hold", "advance", "take_back"]
DAY = 86_400.0


@dataclass(frozen=True)
class DeliveryRules:
    """Rules of a rollout.

    Args:
        steps: percent of the people of each step, rising to 100; 100 alone has no rollout.
        step_seconds: least time at a step, 0 or more.
        step_people: least people in each arm during a step, 0 or more.
        tolerance: how much worse than the version before, in reward, a version may still be at the
            lower end of the confidence sequence to take its next step, 0 or more.
        patience_seconds: time at a step after which less is asked of a version that still cannot
            be told from the one before, and a newer one may take its place at the first step.

    Raises:
        ValueError: if a value is out of range or the steps do not rise to 100.
    """

    steps: tuple[float, ...] = (10.0, 50.0, 100.0)
    step_seconds: float = 2 * DAY
    step_people: int = 100
    tolerance: float = 0.1
    patience_seconds: float = 6 * DAY

    def __post_init__(self) -> None:
        rising = list(self.steps) == sorted(set(self.steps))
        if not (rising and self.steps and self.steps[0] > 0 and self.steps[-1] == 100):
            raise ValueError("steps must rise from above 0 to 100")
        if not (self.step_seconds >= 0 <= self.step_people and self.tolerance >= 0):
            raise ValueError("least time, least people and tolerance must be 0 or more")
        if not self.patience_seconds >= self.step_seconds:
            raise ValueError("patience_seconds must be step_seconds or more")

    def start(self, verdict: Verdict) -> float:
        """Returns the percent at which a candidate starts.

        One that is shown to be better starts at the second step, unless that is the last.
        """
        return self.steps[1] if verdict == "better" and len(self.steps) > 2 else self.steps[0]

    def gives_way(self, ramp: "Ramp") -> bool:
        """Returns True if a newer candidate takes the place of the version being rolled out."""
        is_first = ramp.percent == self.steps[0]
        return is_first and ramp.seconds >= self.patience_seconds


@dataclass(frozen=True)
class Ramp:
    """A version that some of the people are served, and the seconds since its share changed."""

    version: int
    percent: float
    seconds: float


@dataclass(frozen=True)
class Placement:
    """What becomes of a candidate: its outcome, percent of the people, and why.

    A candidate that nobody asked to serve is only stored, and a run that learned nothing new has
    none: no_change.
    """

    outcome: Outcome
    percent: float
    reason: str


def place_candidate(
    gates: Sequence[Gate], verdict: Verdict, ramp: Ramp | None, rules: DeliveryRules
) -> Placement:
    """Decides what becomes of a version that was just trained.

    Args:
        gates: outcomes of its gates.
        verdict: on it against the active version, by what was held out.
        ramp: the rollout under way, or None.
        rules: of rollouts.
    """
    failed = [gate.explanation for gate in gates if not gate.passed]
    if failed:
        return Placement("refused", 0.0, f"refused: {'; '.join(failed)}")
    if ramp is not None and not rules.gives_way(ramp):
        under_way = f"version {ramp.version} is at {ramp.percent:g} % of the people"
        return Placement("waiting", 0.0, f"waits for its turn: {under_way}")
    percent = rules.start(verdict)
    told = {
        "better": "shown to be better than the active version",
        "worse": "shown to be worse than the active version",
        "undecided": "not told from the active version yet",
    }[verdict]
    if percent == 100:
        return Placement("activated", percent, f"served to everybody: {told}")
    return Placement("started", percent, f"starts at {percent:g} % of the people: {told}")


@dataclass(frozen=True)
class StepState:
    """A version at a step of its rollout.

    Attributes:
        percent: of the people that are served it.
        seconds: since it has been at this step.
        people: people with an interaction during this step, in the smaller of its arm and the arm
            that it is compared with.
        worse: True if the anytime-valid test shows it worse than some other arm.
        mismatch: True if the arms do not have their shares of the people, so that no comparison
            speaks for the version.
        difference: its mean reward minus that of the version before; NaN if nobody reacted yet.
        low: lower end of the confidence sequence of that; -inf before its burn-in is over.
    """

    percent: float
    seconds: float
    people: int
    worse: bool
    mismatch: bool
    difference: float
    low: float


@dataclass(frozen=True)
class Move:
    """What becomes of a version at a step: the action, its percent from then on, and why."""

    action: Action
    percent: float
    reason: str


def next_move(state: StepState, rules: DeliveryRules) -> Move:
    """Decides whether a version takes its next step, stays where it is, or is taken back.

    Harm takes it back at any time. It takes a step once it has had its least time and people and
    the confidence sequence rules out more harm than the tolerance. If that cannot be told within
    the patience, it takes its first step if its mean reward is no lower, and any further one.
    """
    if state.worse:
        return Move("take_back", 0.0, "shown to be worse")
    if state.percent not in rules.steps[:-1]:
        return Move("hold", state.percent, "a share that is no step is moved by hand")
    if state.seconds < rules.step_seconds:
        return Move("hold", state.percent, "the step has not had its least time")
    if state.people < rules.step_people or isnan(state.difference):
        return Move("hold", state.percent, "the step has not had its least people")
    if state.mismatch:
        return Move("hold", state.percent, "the arms do not have their shares of the people")
    following = rules.steps[rules.steps.index(state.percent) + 1]
    if state.low > -rules.tolerance:
        return Move(
            "advance",
            following,
            f"at most {max(0.0, -state.low):.4f} worse in reward than the version before",
        )
    if state.seconds >= rules.patience_seconds:
        if state.percent > rules.steps[0] or state.difference >= 0.0:
            return Move("advance", following, "not shown to be worse for long enough")
        return Move("hold", state.percent, "not told from the version before, and looks worse")
    return Move("hold", state.percent, "not told from the version before yet")
