"""Gates: conditions under which a candidate version is refused before anybody is served it.

A candidate is refused if it breaks a bound of safety or is shown to be worse than the active
version. Where the log cannot tell the two apart it passes: the rollout finds out, on few people.
"""

from dataclasses import dataclass

from recparams_rl.evaluation.sequential import Verdict
from recparams_rl.objectives import LEVELS, Objectives
from recparams_rl.reward import EXCLUSIVE_REACTIONS, REACTIONS, RewardWeights


@dataclass(frozen=True)
class Gate:
    """Outcome of one condition; `value` is None if its figure is not known."""

    name: str
    passed: bool
    value: float | None
    threshold: float
    explanation: str


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the gates.

    Attributes:
        interactions: least number of updates behind the version.
        average_reward: mean reward that the interactions just trained must exceed.
        q_bound_factor: largest |Q| as a multiple of its theoretical bound.
        coverage_share: least number of visited states as a share of the active version's, 0 to 1.
    """

    interactions: int = 1000
    average_reward: float = 0.3
    q_bound_factor: float = 1.0
    coverage_share: float = 0.5


@dataclass(frozen=True)
class Figures:
    """Figures of a candidate that the gates compare with their thresholds.

    Attributes:
        interactions: updates behind it, its ancestors' included.
        average_reward: mean reward of the interactions just trained.
        improvement: confidence interval, low and high, of its value minus the active policy's on
            interactions it had not seen; None if it cannot be estimated.
        improvement_reason: a sentence that says why it is None.
        largest_q: largest |Q|; None if the algorithm learns no values.
        q_bound: theoretical upper bound of |Q|.
        states: states visited; None if the learner keeps no table.
        active_states: states the active version has visited, 0 for the rules.
    """

    interactions: int
    average_reward: float
    improvement: tuple[float, float] | None
    improvement_reason: str
    largest_q: float | None
    q_bound: float
    states: int | None
    active_states: int

    @property
    def verdict(self) -> Verdict:
        """Verdict on the candidate against the active policy."""
        low, high = self.improvement or (0.0, 0.0)
        if low > 0.0:
            return "better"
        return "worse" if high < 0.0 else "undecided"


def reward_bounds(weights: RewardWeights, objectives: Objectives) -> tuple[float, float]:
    """Returns the least and the largest reward of one interaction.

    Reactions are free but for `EXCLUSIVE_REACTIONS`, of which one at most is there.
    """
    excluded = [name for pair in EXCLUSIVE_REACTIONS for name in pair]
    free = [(name,) for name in REACTIONS if name not in excluded]
    low = high = 0.0
    for terms in (
        *([getattr(weights, name) for name in names] for names in (*EXCLUSIVE_REACTIONS, *free)),
        (weights.completion_rate,),
        (weights.mood_change, -weights.mood_change),
    ):
        low += min(0.0, *terms)
        high += max(0.0, *terms)
    low, high = sorted((objectives.engagement * low, objectives.engagement * high))
    offsets = LEVELS @ (objectives.diversity, objectives.novelty)
    return low + float(offsets.min()), high + float(offsets.max())


def q_bound(weights: RewardWeights, objectives: Objectives, discount_factor: float) -> float:
    """Returns the largest |Q| that Q-learning can reach from 0: max |r| / (1 - discount_factor)."""
    return max(map(abs, reward_bounds(weights, objectives))) / (1.0 - discount_factor)


def check(figures: Figures, thresholds: Thresholds) -> tuple[Gate, ...]:
    """Returns the outcome of every gate."""
    return (
        _gate(
            "interactions",
            figures.interactions >= thresholds.interactions,
            figures.interactions,
            thresholds.interactions,
            f"trained on {figures.interactions} interactions, at least "
            f"{thresholds.interactions} are needed",
        ),
        _gate(
            "average_reward",
            figures.average_reward > thresholds.average_reward,
            figures.average_reward,
            thresholds.average_reward,
            f"average reward {figures.average_reward:.4f} of the interactions just trained, more "
            f"than {thresholds.average_reward:g} is needed",
        ),
        _improvement(figures),
        _largest_q(figures, thresholds.q_bound_factor * figures.q_bound),
        _coverage(figures, thresholds.coverage_share),
    )


def _improvement(figures: Figures) -> Gate:
    if figures.improvement is None:
        known, said = None, f"not known: {figures.improvement_reason}"
    else:
        low, known = figures.improvement
        said = (
            f"{low:+.4f} to {known:+.4f} on interactions it had not seen, "
            + {
                "better": "so it is shown to be better",
                "worse": "so it is shown to be worse",
                "undecided": "so they cannot be told apart",
            }[figures.verdict]
        )
    return _gate(
        "improvement",
        figures.verdict != "worse",
        known,
        0.0,
        f"value against the active version {said}",
    )


def _coverage(figures: Figures, share: float) -> Gate:
    threshold = share * figures.active_states
    if figures.states is None:
        return _gate("coverage", True, None, threshold, "this algorithm counts no states")
    return _gate(
        "coverage",
        figures.states >= threshold,
        figures.states,
        threshold,
        f"{figures.states} states visited, {figures.active_states} by the active version, of "
        f"which at least {share:.0%} are needed",
    )


def _largest_q(figures: Figures, threshold: float) -> Gate:
    if figures.largest_q is None:
        return _gate("q_bound", True, None, threshold, "this algorithm learns no Q-values")
    # float32 rounds up at most a little at each update.
    return _gate(
        "q_bound",
        figures.largest_q <= threshold * (1 + 1e-4),
        figures.largest_q,
        threshold,
        f"largest |Q| {figures.largest_q:.3f}, and {threshold:.3f} is the most there can be",
    )


def _gate(name: str, passed: bool, value: float | None, threshold: float, explanation: str) -> Gate:
    return Gate(
        name, bool(passed), None if value is None else float(value), float(threshold), explanation
    )
