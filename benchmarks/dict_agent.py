"""The reference: Q-learning on a dict of dicts in plain Python, one update at a time."""

from collections import defaultdict
from collections.abc import Sequence

from recparams_rl.action import ACTIONS
from recparams_rl.state import Context

Key = tuple[int | str, ...]
Move = tuple[str, str, str]

MOVES: tuple[Move, ...] = tuple((a.energy, a.diversity, a.novelty) for a in ACTIONS)


def key(traits: Sequence[float], context: Context) -> Key:
    """The state of five trait scores, in five bins each, and a context."""
    bins = [min(int(score / 20.0), 4) for score in traits]
    return (*bins, context.content_type, context.mood, context.time_of_day)


class DictAgent:
    """{state: {action: value}}, with the actions that were tried.

    It gives the values of rl.q_learning, which is held to such an agent in the tests, in float64.

    Args:
        learning_rate: step size.
        discount_factor: value of the next step's reward.
    """

    def __init__(self, learning_rate: float, discount_factor: float) -> None:
        self.q: dict[Key, dict[Move, float]] = defaultdict(dict)
        self._learning_rate = learning_rate
        self._discount_factor = discount_factor

    def update(self, state: Key, action: Move, reward: float, next_state: Key | None) -> None:
        """One step of Q-learning; there is no next state at the end of an episode."""
        target = reward
        if next_state is not None:
            target += self._discount_factor * max(self.q[next_state].values(), default=0.0)
        row = self.q[state]
        value = row.get(action, 0.0)
        row[action] = value + self._learning_rate * (target - value)

    def choose(self, state: Key) -> Move:
        """The action of highest value; one that was not tried has 0."""
        row = self.q[state]
        return max(MOVES, key=lambda move: row.get(move, 0.0))
