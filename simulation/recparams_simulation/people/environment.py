"""The simulator as a gymnasium environment, for agents of other libraries.

`gymnasium.make("recparams/Recommendation-v0")` after importing this module, which needs the extra
`gym`; `gymnasium.make_vec` of the same name makes many at a time, all of them in one computation.
An episode is one visit of one simulated person: each step is a decision, the reward is that of
recparams_rl/reward.py, and the visit goes on or ends as recparams_simulation/people/simulator.py
has it.

Observations are float32 (20,): the five scores divided by 100, then a place of 0 or 1 for each
content type, mood and time of day, in the order of recparams_rl/state.py. Actions are 0 to 26.

`info` is the same after `reset` and `step`:

- `state`: index of the state observed, int.
- `expected_rewards`: exact mean reward of each action in it, float64 (27,).
- `regret`: of the action just taken, in the state in which it was taken: the best action's mean
  reward minus its own, 0 or more, float. After `reset`, when nothing has been done yet, 0. Its sum
  over an episode is the episode's regret.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.network import context_inputs
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.state import TRAITS, StateSpace
from recparams_simulation.people.population import Situations, draw_population, draw_visits
from recparams_simulation.people.simulator import expected_rewards, next_situations, react
from recparams_simulation.people.traits import Floats

NAME = "recparams/Recommendation-v0"
MONDAY = 1_767_571_200
"""2026-01-05T00:00Z, when the simulated week begins."""

_SPACE = StateSpace()
_OBSERVATIONS = gymnasium.spaces.Box(
    0.0, 1.0, (len(TRAITS) + sum(_SPACE.context_shape),), np.float32
)
_ACTIONS = gymnasium.spaces.Discrete(N_ACTIONS)
_AHEAD = 64
"""Visits that are drawn at a time, at least: one by one they would cost most of all."""

_NOBODY_VISITS = "nobody is visiting: call reset first"


class _Visits:
    """n visits at a time, each of one person.

    Args:
        n: number of visits.
        people, population_seed, weights: as in `Recommendation`.

    Attributes:
        at: the situation of each visit.
        expected: mean rewards of all actions there, float64 (n, 27), as of the last `look`.
    """

    expected: Floats

    def __init__(
        self, n: int, people: int, population_seed: int, weights: RewardWeights | None
    ) -> None:
        if people < 1:
            raise ValueError(f"people must be at least 1, not {people}")
        self._weights = weights or RewardWeights()
        self._population = draw_population(np.random.default_rng(population_seed), people)
        self.at = Situations(*np.zeros((4, n), dtype=np.int64))
        self._next = self.at[:0]

    def begin_all(self, rng: np.random.Generator, *, seeded: bool) -> None:
        """Begins every visit; from a generator just seeded, with nothing drawn before it was."""
        if seeded:
            self._next = self._next[:0]
        self.begin(rng, np.arange(len(self.at)))
        self.look()

    def begin(self, rng: np.random.Generator, places: NDArray[np.intp]) -> None:
        """Begins the visits of people drawn at random, in some of the n places, shape (k,)."""
        while len(self._next) < len(places):
            self._next = self._draw(rng, _AHEAD + 2 * len(places))
        self._put(places, self._next[: len(places)])
        self._next = self._next[len(places) :]

    def _draw(self, rng: np.random.Generator, n: int) -> Situations:
        """Returns the first visit in a week of each of n people, but of those who make none."""
        people = rng.integers(len(self._population), size=n)
        visits = draw_visits(rng, self._population[people], np.arange(n), MONDAY)
        comers, first = np.unique(visits.person, return_index=True)
        return replace(visits[first], person=people[comers])

    def look(self) -> None:
        """Computes what the actions are worth where the visits are now."""
        self._utilities = self._population.utilities(self.at)
        self.expected = expected_rewards(self._population, self.at, self._weights, self._utilities)

    def react(
        self, rng: np.random.Generator, action: NDArray[np.integer[Any]]
    ) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Draws the reactions to actions, shape (n,), and moves on the visits that do not end.

        Returns:
            Rewards and regrets, float64 (n,), and True for each visit that ends. Nothing follows
            the last moment of a visit: it is what is observed at its end.

        Raises:
            ValueError: if an action is none of 0 to 26, or there are not n of them.
        """
        n = len(self.at)
        if (
            action.shape != (n,)
            or not np.issubdtype(action.dtype, np.integer)
            or not (action.min() >= 0 and action.max() < N_ACTIONS)
        ):
            raise ValueError(
                f"an action must be from 0 to {N_ACTIONS - 1}, for each visit: {action}"
            )
        regret = self.expected.max(axis=1) - self.expected[np.arange(n), action]
        outcome = react(rng, self._population, self.at, action, self._utilities)
        found = rewards(self._weights, outcome.mask, outcome.completion_rate, outcome.mood_change)
        following = next_situations(rng, self.at, outcome)
        self._put(np.flatnonzero(outcome.goes_on), following)
        return found.astype(np.float64), regret, ~outcome.goes_on

    def observation(self) -> NDArray[np.float32]:
        """Returns what is observed of each visit, float32 (n, 20)."""
        traits = self._traits().astype(np.float32) / np.float32(100.0)
        return np.concatenate([traits, context_inputs(_SPACE)[self._context()]], axis=1)

    def state(self) -> NDArray[np.int64]:
        """Returns the state index of each visit, int64 (n,)."""
        return _SPACE.cells(self._traits()) * _SPACE.n_contexts + self._context()

    def _traits(self) -> Floats:
        return self._population.traits[self.at.person]

    def _context(self) -> NDArray[np.intp]:
        return np.ravel_multi_index(self.at.context, _SPACE.context_shape)

    def _put(self, places: NDArray[np.intp], there: Situations) -> None:
        for name, column in vars(there).items():
            getattr(self.at, name)[places] = column


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
        self.observation_space, self.action_space = deepcopy((_OBSERVATIONS, _ACTIONS))
        self._visits = _Visits(1, people, population_seed, weights)
        self._is_over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins the visit of a person drawn at random. There are no options."""
        super().reset(seed=seed, options=options)
        self._visits.begin_all(self.np_random, seeded=seed is not None)
        self._is_over = False
        return self._visits.observation()[0], self._info(0.0)

    def step(
        self, action: np.int64 | int
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Draws the reaction to an action.

        Raises:
            gymnasium.error.ResetNeeded: if no visit is under way.
            ValueError: if the action is none of 0 to 26.
        """
        if self._is_over:
            raise gymnasium.error.ResetNeeded(_NOBODY_VISITS)
        reward, regret, ends = self._visits.react(self.np_random, np.array([action]))
        self._visits.look()
        self._is_over = bool(ends[0])
        observation = self._visits.observation()[0]
        return observation, float(reward[0]), self._is_over, False, self._info(float(regret[0]))

    def _info(self, regret: float) -> dict[str, Any]:
        return {
            "state": int(self._visits.state()[0]),
            "expected_rewards": self._visits.expected[0],
            "regret": regret,
        }


class RecommendationVector(
    gymnasium.vector.VectorEnv[NDArray[np.float32], NDArray[np.int64], NDArray[Any]]
):
    """Many of these environments at a time, as `gymnasium.make_vec` makes them.

    The step after the last one of a visit begins another one there: it ignores the action, its
    reward and regret are 0 (gymnasium's `AutoresetMode.NEXT_STEP`). `info` has columns, one row for
    each environment.

    Args:
        num_envs: how many, at least 1.
        people, population_seed, weights: as in `Recommendation`; one population visits all.

    Raises:
        ValueError: if there are no environments or no people.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - gymnasium's own

    def __init__(
        self,
        num_envs: int = 1,
        people: int = 1000,
        population_seed: int = 0,
        weights: RewardWeights | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, not {num_envs}")
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = deepcopy(
            (_OBSERVATIONS, _ACTIONS)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._visits = _Visits(num_envs, people, population_seed, weights)
        self._is_over: NDArray[np.bool_] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins a visit in every environment. There are no options."""
        super().reset(seed=seed, options=options)
        self._visits.begin_all(self.np_random, seeded=seed is not None)
        self._is_over = np.zeros(self.num_envs, dtype=np.bool_)
        return self._visits.observation(), self._info(np.zeros(self.num_envs))

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Draws the reactions to actions, int64 (num_envs,). Raises as `Recommendation.step`."""
        if self._is_over is None:
            raise gymnasium.error.ResetNeeded(_NOBODY_VISITS)
        begins = self._is_over
        reward, regret, ends = self._visits.react(self.np_random, np.asarray(actions))
        self._visits.begin(self.np_random, np.flatnonzero(begins))
        self._visits.look()
        self._is_over = ends & ~begins
        reward[begins] = regret[begins] = 0.0
        never = np.zeros(self.num_envs, dtype=np.bool_)
        return self._visits.observation(), reward, self._is_over, never, self._info(regret)

    def _info(self, regret: Floats) -> dict[str, Any]:
        columns = {
            "state": self._visits.state(),
            "expected_rewards": self._visits.expected,
            "regret": regret,
        }
        # gymnasium's masks of who has a value.
        everybody = np.ones(self.num_envs, dtype=np.bool_)
        return columns | {f"_{name}": everybody for name in columns}


if NAME not in gymnasium.registry:
    gymnasium.register(
        NAME,
        f"{__name__}:Recommendation",
        vector_entry_point=f"{__name__}:RecommendationVector",
    )
