"""Exploration by draws, as recparams_rl/draws.py has it, in plain Python."""

from array import array
from itertools import accumulate

from recparams.v1 import policy_pb2


class Draws:
    """Draws of the states of an arm, each as likely: of its own action, or of others.

    Args:
        message: checked.

    Attributes:
        n: draws of a state.
    """

    def __init__(self, message: policy_pb2.Draws) -> None:
        self.n: int = message.n
        self._cells = tuple(message.cells)
        self._n_cells = message.bins**5
        self._starts = array("I", accumulate(message.counts, initial=0))
        self._actions = message.actions

    def take(self, cell: int, context: int, draw: int) -> int | None:
        """Returns the action of a draw; None where that is the arm's own.

        Args:
            cell: the personality cell.
            context: the index of the context.
            draw: its number, 0 to `n` - 1.
        """
        own = context * self._n_cells + self._cells[cell]
        place = self._starts[own] + draw
        return self._actions[place] if place < self._starts[own + 1] else None

    def count(self, cell: int, context: int, action: int, *, is_own: bool) -> int:
        """Returns how many draws are of an action, `is_own` if that is the arm's own."""
        own = context * self._n_cells + self._cells[cell]
        start, stop = self._starts[own], self._starts[own + 1]
        drawn = self._actions.count(action, start, stop)
        return drawn + self.n - (stop - start) if is_own else drawn
