"""The seed's q_table.json, {state: {action: Q-value}}, with visits and hyperparameters.

A state's key is ``str`` of (five trait bins, content type, mood, time of day), an action's is
``str`` of (energy, diversity, novelty), as in ``"(3, 3, 2, 4, 1, 'music', 'calm', 'evening')"``.
"""

import json
from ast import literal_eval
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rl.action import ACTIONS, N_ACTIONS, Action
from rl.state import TRAITS, Context, StateSpace

FORMAT = "recparams.q_table/1"

LARGEST_Q = 3e38
ASSUMED_VISITS = 50
"""Visits of a pair in a file that does not count them: enough for its value to stand."""


@dataclass(frozen=True)
class QTable:
    """Q-table: float32 `q` and int32 `visits`, both (n_states, n_actions)."""

    space: StateSpace
    q: NDArray[np.float32]
    visits: NDArray[np.int32]
    hyperparameters: dict[str, Any]


def dump(table: QTable) -> Iterator[str]:
    """Yields the table as pieces of JSON text, one state a line; visited pairs only."""
    head = {
        "format": FORMAT,
        "space": table.space.to_dict(),
        "hyperparameters": table.hyperparameters,
    }
    yield json.dumps(head)[:-1]
    visited = np.flatnonzero((table.visits > 0).any(axis=1))
    keys = [json.dumps(_state_key(table.space, int(state))) for state in visited]
    for name, column in (("q_table", table.q), ("visit_counts", table.visits)):
        yield f',\n"{name}": {{'
        for position, (key, state) in enumerate(zip(keys, visited, strict=True)):
            row = {
                str(_action_names(ACTIONS[action])): column[state, action].item()
                for action in np.flatnonzero(table.visits[state])
            }
            yield f"{',' if position else ''}\n{key}: {json.dumps(row)}"
        yield "}"
    yield "}\n"


def load(text: str | bytes, space: StateSpace) -> QTable:
    """Reads a table from the JSON text of `dump`, or from a bare {state: {action: Q-value}}.

    A bare file is read in the given space and its values are taken as settled.

    Raises:
        ValueError: if the text is not such a file; names the first entry that is wrong.
    """
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError("not an object of states")
    if "q_table" not in data:
        data = {"q_table": data}
    if data.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format is {data['format']!r}, not {FORMAT!r}")
    if "space" in data:
        space = _space(data["space"])
    q = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    visits = np.zeros((space.n_states, N_ACTIONS), dtype=np.int32)
    for _, pair, value in _entries(data["q_table"], space, "q_table"):
        q[pair], visits[pair] = value, ASSUMED_VISITS
    if "visit_counts" in data:
        visits[:] = 0
        for where, pair, value in _entries(data["visit_counts"], space, "visit_counts"):
            if value != int(value) or not 0 <= value < 2**31:
                raise ValueError(f"{where}: a visit count must be a whole number, not {value}")
            visits[pair] = int(value)
        q[visits == 0] = 0.0
    hyperparameters = data.get("hyperparameters", {})
    if not isinstance(hyperparameters, dict):
        raise ValueError("hyperparameters: not an object")
    return QTable(space, q, visits, hyperparameters)


def _space(data: Any) -> StateSpace:
    try:
        return StateSpace.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"space: {error}") from None


def _state_key(space: StateSpace, state: int) -> str:
    bins, context = space.decode(state)
    return str((*bins, context.content_type, context.mood, context.time_of_day))


def _action_names(action: Action) -> tuple[str, str, str]:
    return action.energy, action.diversity, action.novelty


def _entries(
    table: Any, space: StateSpace, name: str
) -> Iterator[tuple[str, tuple[int, int], float]]:
    if not isinstance(table, dict):
        raise ValueError(f"{name}: not an object of states")
    action_of = {str(_action_names(action)): action.index for action in ACTIONS}
    seen = set()
    for key, row in table.items():
        state = _state(key, space, name)
        if state in seen:
            raise ValueError(f"{name}[{key!r}]: this state is there twice")
        seen.add(state)
        if not isinstance(row, dict):
            raise ValueError(f"{name}[{key!r}]: not an object of actions")
        for action, value in row.items():
            where = f"{name}[{key!r}][{action!r}]"
            if action not in action_of:
                raise ValueError(f"{where}: no such action")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and -LARGEST_Q < value < LARGEST_Q):
                raise ValueError(f"{where}: not a finite number: {value!r}")
            yield where, (state, action_of[action]), float(value)


def _state(key: str, space: StateSpace, name: str) -> int:
    try:
        *bins, content_type, mood, time_of_day = literal_eval(key)
        context = space.context(Context(content_type, mood, time_of_day))
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
        raise ValueError(f"{name}[{key!r}]: no such state") from None
    if len(bins) != len(TRAITS) or not all(type(b) is int and 0 <= b < space.bins for b in bins):
        raise ValueError(f"{name}[{key!r}]: no such state")
    cell = 0
    for trait_bin in bins:
        cell = cell * space.bins + trait_bin
    return cell * space.n_contexts + context
