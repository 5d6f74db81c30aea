"""An algorithm of your own: what a file in rl/ has, tried on simulated people.

`python examples/algorithm.py` in a checkout after `make setup`. To have the service train with it
(`recparams train --algorithm sample_mean --parameter optimism=0.3`), move the two classes to
recparams_rl/learners/sample_mean.py, name `SampleMean` in `LEARNERS` of
recparams_rl/learners/registry.py, and give it a page in docs/algorithms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from recparams_rl.learners.hyperparameters import Hyperparameters, check_range
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.policy import Policy, publish
from recparams_rl.smoothing import Visited
from recparams_rl.state import StateSpace
from recparams_rl.transitions import TERMINAL, Transitions
from recparams_simulation.people.environment import Recommendation


@dataclass(frozen=True)
class SampleMeanHyperparameters(Hyperparameters):
    """With what is expected of an action that was never tried.

    Args:
        optimism: its reward, counted as one interaction, -10 to 10.
    """

    optimism: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimism", self.optimism, -10, 10)


class SampleMean(TabularLearner):
    """Q(s, a) is the mean reward of a in s: a bandit, which does not look at what follows."""

    algorithm: ClassVar[str] = "sample_mean"
    Settings: ClassVar[type[Hyperparameters]] = SampleMeanHyperparameters
    hyperparameters: SampleMeanHyperparameters

    def _update(self, part: Transitions) -> None:
        for state, action, reward in zip(part.state, part.action, part.reward, strict=True):
            seen = self.visits[state, action]
            old = self.q[state, action] if seen else self.hyperparameters.optimism
            self.q[state, action] = old + (reward - old) / (seen + 2)
            self.visits[state, action] = seen + 1

    def publishing(
        self, states: NDArray[np.integer[Any]] | None = None, *, threads: int = 1
    ) -> Callable[[], Policy]:
        # A step of 1, for the table holds means, not what steps from zero have left.
        return partial(
            publish,
            self.space,
            Visited.of(self.q, self.visits, self.q),
            learning_rate=1.0,
            epsilon=self.epsilon,
            smoothing=self.smoothing,
            states=states,
            threads=threads,
        )


def log_of_chance(env: Recommendation, n: int, seed: int) -> Transitions:
    """What n random actions brought."""
    rng = np.random.default_rng(seed)
    rows = []
    _, info = env.reset(seed=seed)
    for _ in range(n):
        state, action = info["state"], int(rng.integers(27))
        _, reward, is_over, _, info = env.step(action)
        rows.append((state, action, reward, TERMINAL if is_over else info["state"]))
        if is_over:
            _, info = env.reset()
    rows.sort(key=lambda row: row[0])
    state, action, reward, next_state = (np.array(column) for column in zip(*rows, strict=True))
    return Transitions(
        state.astype(np.int32),
        action.astype(np.uint8),
        reward.astype(np.float32),
        next_state.astype(np.int32),
    )


def main() -> None:
    """Learns by Q-learning and by the sample mean, and says what each is worth to newcomers."""
    log = log_of_chance(Recommendation(people=500), 6000, seed=1)
    LEARNERS[SampleMean.algorithm] = SampleMean
    for algorithm in ("q_learning", "sample_mean"):
        env = Recommendation(people=500, population_seed=2)
        learner = LEARNERS[algorithm](StateSpace(), settings_of(algorithm, {}))
        learner.learn(log)
        policy = learner.publish()
        worth, best = [], []
        for seed in range(500):
            x, info = env.reset(seed=seed)
            scores = 100 * x[None, :5].astype(np.float64)
            context = info["state"] % policy.space.n_contexts
            state = policy.space.cells(scores) * policy.space.n_contexts + context
            action = policy.likeliest(state, scores)[0]
            worth.append(info["expected_rewards"][action])
            best.append(info["expected_rewards"].max())
        print(f"{algorithm:12} {np.mean(worth):+.3f} of {np.mean(best):+.3f}")


if __name__ == "__main__":
    main()
