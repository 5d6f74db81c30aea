"""An agent that takes one step at a time, on the table, the kernel and the file of training.

It acts on its own table: the action of the highest Q-value, the first of equals, among those that
were tried in the state, and the rules' action where none was. The service does not serve that. It
publishes a regression on the whole table, which leaves the rules only where another action is
surely better (`recparams_rl.policy.publish`); `QLearningAgent.learner.publish` gives that policy
too.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from recparams_rl import q_table
from recparams_rl.action import ACTIONS, N_ACTIONS, Action
from recparams_rl.learners.q_learning import QLearning
from recparams_rl.learners.registry import settings_of
from recparams_rl.learners.ucb import Ucb, choose
from recparams_rl.policy import draw, propensity
from recparams_rl.reward import (
    EXCLUSIVE_REACTIONS,
    REACTIONS,
    RewardWeights,
    reaction_mask,
    rewards,
)
from recparams_rl.rules import rule_based_action
from recparams_rl.state import TRAITS, Context, StateSpace
from recparams_rl.transitions import TERMINAL, Transitions

RecommendationAction = Action
"""The action, by the name that goes with `RecommendationState`."""

SELECTIONS: dict[str, type[QLearning]] = {"epsilon_greedy": QLearning, "ucb": Ucb}
"""The learner behind each way of selecting an action."""


@dataclass(frozen=True)
class RecommendationState:
    """One person in one context.

    Args:
        openness, conscientiousness, extraversion, agreeableness, neuroticism: scores, 0 to 100.
        content_type, mood, time_of_day: names of the state space's vocabularies.
    """

    openness: float
    conscientiousness: float
    extraversion: float
    agreeableness: float
    neuroticism: float
    content_type: str
    mood: str
    time_of_day: str

    @property
    def traits(self) -> tuple[float, ...]:
        """The scores, in the order of `recparams_rl.state.TRAITS`."""
        return tuple(getattr(self, name) for name in TRAITS)

    @property
    def context(self) -> Context:
        """The context."""
        return Context(self.content_type, self.mood, self.time_of_day)

    def index(self, space: StateSpace) -> int:
        """Returns the state's index. Raises ValueError if the space does not have the state."""
        try:
            return space.index(self.traits, self.context)
        except KeyError:
            raise ValueError(f"the state space has no {self.context}") from None

    def to_tuple(self, space: StateSpace | None = None) -> tuple[Any, ...]:
        """Returns the key of the state in q_table.json, as in (3, 3, 2, 4, 1, 'music', ...).

        Raises ValueError as `index`; None is the default space.
        """
        space = space or StateSpace()
        return q_table.state_names(space, self.index(space))


class RewardFunction:
    """The reward of one interaction."""

    @staticmethod
    def calculate_reward(
        interaction_type: str | Iterable[str] = (),
        completion_rate: float | None = None,
        mood_change: float | None = None,
        *,
        weights: RewardWeights | None = None,
    ) -> float:
        """Returns the reward, as `recparams_rl.reward.rewards`, a float32 number.

        Args:
            interaction_type: one of `recparams_rl.reward.REACTIONS`, or several.
            completion_rate: 0 to 1; None counts 0.
            mood_change: -1 to 1; None counts 0.
            weights: None takes the defaults.

        Raises:
            ValueError: if a name is unknown, two exclude each other, or a number is out of range.
        """
        names = {interaction_type} if isinstance(interaction_type, str) else set(interaction_type)
        for name in names - set(REACTIONS):
            raise ValueError(f"interaction_type must be of {', '.join(REACTIONS)}, not {name!r}")
        for pair in EXCLUSIVE_REACTIONS:
            if names.issuperset(pair):
                raise ValueError(f"{' and '.join(pair)} exclude each other")
        for field, value, least in (
            ("completion_rate", completion_rate, 0),
            ("mood_change", mood_change, -1),
        ):
            if value is not None and not least <= value <= 1:
                raise ValueError(f"{field} must be from {least} to 1, not {value}")
        mask = np.array([reaction_mask(names)])
        rates = [np.nan if value is None else value for value in (completion_rate, mood_change)]
        return float(rewards(weights or RewardWeights(), mask, *([rate] for rate in rates))[0])


class QLearningAgent:
    """A Q-learning agent over a table of its own. Threads must not share one.

    The exploration rate falls with the updates of the table, those of its file included, as a
    service's does: `exploration_decay` is the factor for each thousand of them, neither for each
    step nor for each run of training.

    Args:
        selection: "epsilon_greedy", or "ucb" (`recparams_rl.learners.ucb`): explores by taking the
            action of the highest upper confidence bound, those never tried in the state first.
        space: the state space; None is the default one.
        seed: of the random choices; None draws one.
        table: the table to go on from, changed in place; None is an empty one.
        hyperparameters: fields of `recparams_rl.learners.hyperparameters.Hyperparameters`, such as
            learning_rate; with "ucb" `confidence` as well. Those not given have their defaults.

    Attributes:
        learner: the learner, with the arrays `q`, `visits` and `rewards`, (n_states, 27).

    Raises:
        ValueError: if there is no such selection or hyperparameter, or one is out of range, or
            the table does not fit the space.
    """

    def __init__(
        self,
        *,
        selection: str = "epsilon_greedy",
        space: StateSpace | None = None,
        seed: int | None = None,
        table: q_table.QTable | None = None,
        **hyperparameters: Any,
    ) -> None:
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, not {selection!r}")
        learner, arrays = SELECTIONS[selection], None
        if table is not None:
            arrays = {"q": table.q, "visits": table.visits, "rewards": table.rewards}
        self.learner = learner(
            space or StateSpace(), settings_of(learner.algorithm, hyperparameters), arrays=arrays
        )
        self._updates = self.learner.statistics().total_updates
        self._rng = np.random.default_rng(seed)

    @property
    def exploration_rate(self) -> float:
        """Probability of a random action now, 0 to 1; "ucb" does not use it."""
        return self.learner.hyperparameters.epsilon(self._updates)

    def get_action(self, state: RecommendationState, explore: bool = True) -> Action:
        """Returns an action, drawn with `propensities`.

        Args:
            state: the person and the context.
            explore: False takes the greedy action: of the actions that were tried in this state,
                the one of the highest Q-value, even where that is below 0, and the rules' action
                (`recparams_rl.rules`) if none was, as in every state of an untrained table.

        Raises:
            ValueError: if the state space does not have the state.
        """
        dist = self.propensities(state, explore=explore)
        return ACTIONS[int(draw(self._rng, dist[None])[0])]

    def propensities(self, state: RecommendationState, explore: bool = True) -> NDArray[np.float64]:
        """Returns the probability with which `get_action` takes each action, float64 (27,).

        Raises ValueError as `get_action`.
        """
        index = state.index(self.learner.space)
        q, visits = self.learner.q[index], self.learner.visits[index]
        epsilon = 0.0
        if explore and isinstance(self.learner, Ucb):
            preferred = int(
                choose(q[None], visits[None], self.learner.hyperparameters.confidence)[0]
            )
        else:
            epsilon = self.exploration_rate if explore else 0.0
            preferred = _greedy(state, q, visits)
        dist = np.full(N_ACTIONS, propensity(epsilon, greedy=False))
        dist[preferred] = propensity(epsilon, greedy=True)
        return dist

    def update(
        self,
        state: RecommendationState,
        action: Action,
        reward: float,
        next_state: RecommendationState | None = None,
    ) -> None:
        """Learns one transition, as training does.

        Args:
            state: the state that was acted in.
            action: the action that was taken.
            reward: its reward.
            next_state: the state that followed; None ends the episode. Unlike in logs, it may lie
                in another personality cell.

        Raises:
            ValueError: if the state space does not have a state, or the reward is not finite;
                nothing is learned then.
        """
        if not abs(reward) < q_table.LARGEST_Q:
            raise ValueError(f"reward must be a finite number, not {reward}")
        space = self.learner.space
        following = TERMINAL if next_state is None else next_state.index(space)
        self.learner.learn_in_order(
            Transitions(
                np.array([state.index(space)], np.int32),
                np.array([action.index], np.uint8),
                np.array([reward], np.float32),
                np.array([following], np.int32),
            )
        )
        self._updates += 1

    def get_stats(self) -> dict[str, float]:
        """Returns the statistics of the table, by the names of a service's, and of exploration.

        These are total_states, total_state_actions, avg_q_value, max_q_value, largest_q, coverage
        and total_updates (`recparams_rl.learners.base.Statistics`), and exploration_rate.
        """
        return {**asdict(self.learner.statistics()), "exploration_rate": self.exploration_rate}

    def save(self, file: IO[str]) -> None:
        """Writes the table as q_table.json, which a service imports, to an open text file."""
        learner = self.learner
        settings = learner.hyperparameters.to_dict()
        table = q_table.QTable(learner.space, learner.q, learner.visits, learner.rewards, settings)
        file.writelines(q_table.dump(table))

    @classmethod
    def load(
        cls,
        file: IO[str] | IO[bytes],
        *,
        selection: str = "epsilon_greedy",
        space: StateSpace | None = None,
        seed: int | None = None,
        **changes: Any,
    ) -> Self:
        """Returns an agent that goes on from a q_table.json, such as a service exports.

        Args:
            file: an open file, of text or bytes.
            selection, seed: as of the class.
            space: of a bare {state: {action: Q-value}}; other files have theirs.
            changes: hyperparameters to have instead of the file's.

        Raises:
            ValueError: as `recparams_rl.q_table.load` and the class.
        """
        table = q_table.load(file.read(), space or StateSpace())
        known = {field.name for field in fields(SELECTIONS.get(selection, QLearning).Settings)}
        kept = {name: value for name, value in table.hyperparameters.items() if name in known}
        given = {**kept, **changes}
        return cls(selection=selection, space=table.space, seed=seed, table=table, **given)


def _greedy(state: RecommendationState, q: NDArray[np.float32], visits: NDArray[np.int32]) -> int:
    """Returns the index of the greedy action of a state by its rows, (27,)."""
    if not visits.any():
        return rule_based_action(state.traits, state.context).index
    return int(np.where(visits > 0, q, -np.inf).argmax())
