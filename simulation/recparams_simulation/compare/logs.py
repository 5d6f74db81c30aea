"""Logs of simulated people, from which the systems of a comparison learn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.policy import Policy, propensity, rule_based_policy
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.state import TRAITS, Context, StateSpace
from recparams_rl.transitions import Batch, Interactions, Transitions, prepare
from recparams_simulation.people.population import DAY, Population, Situations, draw_visits
from recparams_simulation.people.simulator import next_situations, react

SPACE = StateSpace()
CONTEXTS = [SPACE.decode(context)[1] for context in range(SPACE.n_contexts)]
"""Contexts of `SPACE`, by index."""

BEHAVIOUR_EPSILON = 0.3
"""Exploration rate of the behaviour policy of the logs, which otherwise follows the rules."""

START = 20_000 * DAY
MICROSECONDS = 1_000_000

Choose = Callable[[Situations], tuple[NDArray[np.int64], NDArray[np.float64]]]
Question = tuple[list[float], Context]
"""Five scores, 0 to 100, and a context."""


@dataclass(frozen=True)
class Log:
    """n logged interactions by time; traits (n, 5), the other columns (n,).

    Attributes:
        at: the situations.
        traits: scores, 0 to 100, float64.
        context: index of the context, int64.
        action: 0 to 26, int64.
        reward: float32.
        propensity: of the logged action under the behaviour policy, float64.
    """

    at: Situations
    traits: NDArray[np.float64]
    context: NDArray[np.int64]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    propensity: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Log":
        return Log(**{name: column[rows] for name, column in vars(self).items()})

    @property
    def state(self) -> NDArray[np.int32]:
        """State indices, (n,)."""
        return states(self.traits, self.context)

    def questions(self) -> list[Question]:
        """Returns the scores and the context of each decision."""
        contexts = [CONTEXTS[one] for one in self.context.tolist()]
        return list(zip(self.traits.tolist(), contexts, strict=True))


_INTS = np.empty(0, dtype=np.int64)
_NOTHING = Log(
    Situations(_INTS, _INTS, _INTS, _INTS),
    np.empty((0, len(TRAITS))),
    _INTS,
    _INTS,
    np.empty(0, dtype=np.float32),
    np.empty(0),
)


def joined(logs: Sequence[Log]) -> Log:
    """Returns some logs as one, by time."""
    at = [[getattr(log.at, name) for log in logs] for name in vars(logs[0].at)]
    others = [[getattr(log, name) for log in logs] for name in vars(logs[0]) if name != "at"]
    whole = Log(Situations(*map(np.concatenate, at)), *map(np.concatenate, others))
    return whole[np.argsort(whole.at.time, kind="stable")]


def states(
    traits: NDArray[np.float64], context: NDArray[np.int64], space: StateSpace = SPACE
) -> NDArray[np.int32]:
    """Returns the state indices of n people, int32 (n,), for scores (n, 5) and contexts (n,)."""
    found: NDArray[np.int32] = (space.cells(traits) * space.n_contexts + context).astype(np.int32)
    return found


def contexts(at: Situations) -> NDArray[np.int64]:
    """Returns the context indices of n situations, int64 (n,)."""
    return np.ravel_multi_index(at.context, SPACE.context_shape)


def play(
    rng: np.random.Generator,
    population: Population,
    visits: Situations,
    policy: Policy,
    epsilon: float,
) -> tuple[Log, NDArray[np.int64]]:
    """Plays visits to their end under a policy with random actions; result as `play_by`."""

    def usual(at: Situations) -> NDArray[np.uint8]:
        return likeliest(policy, population.traits[at.person], contexts(at))

    return play_by(rng, population, visits, epsilon_greedy(rng, usual, epsilon))


def epsilon_greedy(
    rng: np.random.Generator, usual: Callable[[Situations], NDArray[np.uint8]], epsilon: float
) -> Choose:
    """Returns the choice of usual actions, uint8 (m,), or with some probability of any action."""
    greedy, other = (propensity(epsilon, greedy=one) for one in (True, False))

    def choose(at: Situations) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        likely = usual(at)
        explores = rng.random(len(at)) < epsilon
        action = np.where(explores, rng.integers(N_ACTIONS, size=len(at)), likely)
        return action, np.where(action == likely, greedy, other)

    return choose


def likeliest(
    policy: Policy, traits: NDArray[np.float64], context: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Returns the likeliest actions for n people, uint8 (n,), on the bins of the policy."""
    return policy.likeliest(states(traits, context, policy.space), traits)


def play_by(
    rng: np.random.Generator,
    population: Population,
    visits: Situations,
    choose: Choose,
) -> tuple[Log, NDArray[np.int64]]:
    """Plays visits to their end.

    Args:
        rng: the generator.
        population: the people.
        visits: first situation of each visit.
        choose: returns the actions that are taken in m situations, and their propensities, (m,).

    Returns:
        The log, and the people who never come back, indices without repetition.
    """
    if not len(visits):
        return _NOTHING, np.empty(0, dtype=np.int64)
    at = visits
    parts: list[tuple[NDArray[Any], ...]] = []
    leavers = []
    while len(at):
        traits, context = population.traits[at.person], contexts(at)
        action, chance = choose(at)
        out = react(rng, population, at, action)
        reward = rewards(RewardWeights(), out.mask, out.completion_rate, out.mood_change)
        moment = at.person, at.time, at.content_type, at.mood
        parts.append((*moment, traits, context, action, reward, chance))
        leavers.append(at.person[out.leaves])
        at = next_situations(rng, at, out)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    by_time = np.argsort(columns[1], kind="stable")
    ordered = [column[by_time] for column in columns]
    return Log(Situations(*ordered[:4]), *ordered[4:]), np.unique(np.concatenate(leavers))


def simulate(rng: np.random.Generator, population: Population, n: int) -> Log:
    """Simulates the first n interactions of a week under the rules with exploration."""
    visits = draw_visits(rng, population, np.arange(len(population)), START)
    rules = rule_based_policy(SPACE, BEHAVIOUR_EPSILON)
    return play(rng, population, visits, rules, rules.epsilon)[0][:n]


def transitions(log: Log, space: StateSpace = SPACE) -> Transitions:
    """Returns the log as transitions: encoded, chained and sorted as in training."""
    return batch(log, space).transitions


def batch(log: Log, space: StateSpace = SPACE) -> Batch:
    """Returns the log as `transitions` does, and the row of the log of each of them."""
    interactions = Interactions(
        id=np.arange(len(log)) + 1,
        user=log.at.person,
        time=log.at.time * MICROSECONDS,
        state=states(log.traits, log.context, space),
        action=log.action.astype(np.uint8),
        reward=log.reward,
        traits=log.traits.astype(np.float32),
    )
    return prepare(
        interactions,
        n_contexts=space.n_contexts,
        session_gap=int(Hyperparameters().session_gap_seconds * MICROSECONDS),
        settled_before=np.iinfo(np.int64).max,
        min_interactions=1,
    )
