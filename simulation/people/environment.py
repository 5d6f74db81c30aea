"""The simulator as a gymnasium environment, for agents of other libraries.

`gymnasium.make("recparams/Recommendation-v0")` after importing this module, which needs the extra
`gym`. An episode is one visit of one simulated person: each step is a decision, the reward is that
of rl/reward.py, and the visit goes on or ends as simulation/people/simulator.py has it.

Observations are float32 (20,): the five scores divided by 100, then a place of 0 or 1 for each
content type, mood and time of day, in the order of rl/state.py. Actions are 0 to 26. `info` has the
state's index, the exact mean reward of every action and, of a step, its regret, the distance of the
action's mean reward to the best one's.
"""

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from rl.action import N_ACTIONS
from rl.learners.network import context_inputs
from rl.reward import RewardWeights, rewards
from rl.state import TRAITS, StateSpace
from simulation.people.population import Situations, draw_population, draw_visits
from simulation.people.simulator import expected_rewards, next_situations, react

NAME = "recparams/Recommendation-v0"
MONDAY = 1_767_571_200
"""2026-01-05T00:00Z, when the simulated week begins."""

_SPACE = StateSpace()
_NOBODY = Situations(*np.empty((4, 0), dtype=np.int64))
_N_OBSERVED = len(TRAITS) + sum(_SPACE.context_shape)


class Recommendation(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Environment whose episodes are visits of one simulated person after another.

    Args:
        people: size of the population, at least 1.
        population_seed: of the population.
        weights: of the reward.

    Raises:
        ValueError: if there are no people.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - gymnasium's own

    def __init__(
        self,
        people: int = 1000,
        population_seed: int = 0,
        weights: RewardWeights | None = None,
    ) -> None:
        if people < 1:
            raise ValueError(f"people must be at least 1, not {people}")
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (_N_OBSERVED,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(N_ACTIONS)
        self._weights = weights or RewardWeights()
        self._population = draw_population(np.random.default_rng(population_seed), people)
        self._at = _NOBODY
        self._is_over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins the visit of a person drawn at random. There are no options."""
        super().reset(seed=seed, options=options)
        self._at = _NOBODY
        while not len(self._at):
            someone = self.np_random.integers(len(self._population), size=1)
            self._at = draw_visits(self.np_random, self._population, someone, MONDAY)[:1]
        self._is_over = False
        return self._observation(), self._info()

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Draws the reaction to an action, 0 to 26. Raises ResetNeeded if no visit is under way."""
        if self._is_over:
            raise gymnasium.error.ResetNeeded("nobody is visiting: call reset first")
        means = self._means()
        outcome = react(self.np_random, self._population, self._at, np.array([action]))
        found = rewards(self._weights, outcome.mask, outcome.completion_rate, outcome.mood_change)
        following = next_situations(self.np_random, self._at, outcome)
        self._is_over = not len(following)
        # Nothing follows the last moment of a visit: it is what is observed at its end.
        self._at = self._at if self._is_over else following
        info = {**self._info(), "regret": float(means.max() - means[action])}
        return self._observation(), float(found[0]), self._is_over, False, info

    def _observation(self) -> NDArray[np.float32]:
        traits = self._traits()[0].astype(np.float32) / np.float32(100.0)
        return np.concatenate([traits, context_inputs(_SPACE)[self._context()]])

    def _info(self) -> dict[str, Any]:
        cell = int(_SPACE.cells(self._traits())[0])
        return {
            "state": cell * _SPACE.n_contexts + self._context(),
            "expected_rewards": self._means(),
        }

    def _means(self) -> NDArray[np.float64]:
        means: NDArray[np.float64] = expected_rewards(self._population, self._at, self._weights)[0]
        return means

    def _traits(self) -> NDArray[np.float64]:
        return self._population.traits[self._at.person]

    def _context(self) -> int:
        return int(np.ravel_multi_index(self._at.context, _SPACE.context_shape)[0])


if NAME not in gymnasium.registry:
    gymnasium.register(NAME, "simulation.people.environment:Recommendation")
