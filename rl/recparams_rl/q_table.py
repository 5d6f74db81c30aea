"""The file q_table.json, {state: {action: Q-value}}, with visits, rewards and hyperparameters.

A state's key is ``str`` of (five trait bins, content type, mood, time of day), an action's is
``str`` of (energy, diversity, novelty), as in ``"(3, 3, 2, 4, 1, 'music', 'calm', 'evening')"``.
"""

import json
import re
from ast import literal_eval
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl import strict_json
from recparams_rl.action import ACTIONS, N_ACTIONS
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.registry import LEARNERS, parameters_of
from recparams_rl.state import TRAITS, Context, StateSpace
from recparams_rl.strict_json import shown

FORMAT = "recparams.q_table/1"
ALGORITHM = "q_learning"
"""The algorithm that goes on from a table that is read."""
_FIELDS = (
    "format",
    "algorithm",
    "space",
    "hyperparameters",
    "q_table",
    "visit_counts",
    "rewards",
)

LARGEST_Q = 3e38
ASSUMED_VISITS = 50
"""Visits of a pair in a file that does not count them: enough for its value to stand."""


@dataclass(frozen=True)
class QTable:
    """Q-table: float32 `q`, int32 `visits` and float32 `rewards`, all (n_states, n_actions)."""

    space: StateSpace
    q: NDArray[np.float32]
    visits: NDArray[np.int32]
    rewards: NDArray[np.float32]
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
    keys = [json.dumps(str(state_names(table.space, int(state)))) for state in visited]
    columns = {"q_table": table.q, "visit_counts": table.visits, "rewards": table.rewards}
    for name, column in columns.items():
        yield f',\n"{name}": {{'
        for position, (key, state) in enumerate(zip(keys, visited, strict=True)):
            row = {
                str(ACTIONS[action].to_tuple()): column[state, action].item()
                for action in np.flatnonzero(table.visits[state])
            }
            yield f"{',' if position else ''}\n{key}: {json.dumps(row)}"
        yield "}"
    yield "}\n"


def load(text: str | bytes, space: StateSpace) -> QTable:
    """Reads a table from the JSON text of `dump`, or from a bare {state: {action: Q-value}}.

    A bare file is read in the given space and its values are taken as settled. Values of a file
    without rewards are taken as what was rewarded at once.

    Raises:
        ValueError: if the text is not such a file; names the first entry that is wrong.
    """
    data = _parse(text)
    if data.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format is {shown(data['format'])}, not {FORMAT!r}")
    if data.get("algorithm", ALGORITHM) != ALGORITHM:
        raise ValueError(f"algorithm: must be {ALGORITHM!r}, not {shown(data['algorithm'])}")
    if "space" in data:
        space = _space(data["space"])
    hyperparameters = data.get("hyperparameters", {})
    _check_hyperparameters(hyperparameters)
    q = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    visits = np.zeros((space.n_states, N_ACTIONS), dtype=np.int32)
    rewards = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    for _, pair, value in _entries(data["q_table"], space, "q_table"):
        q[pair], visits[pair] = value, ASSUMED_VISITS
    if "visit_counts" in data:
        visits[:] = 0
        for where, pair, value in _entries(data["visit_counts"], space, "visit_counts"):
            if value != int(value) or not 0 <= value < 2**31:
                raise ValueError(f"{where}: a visit count must be a whole number, not {value}")
            visits[pair] = int(value)
        q[visits == 0] = 0.0
    if "rewards" in data:
        for _, pair, value in _entries(data["rewards"], space, "rewards"):
            rewards[pair] = value
        rewards[visits == 0] = 0.0
    else:
        rewards[:] = q
    return QTable(space, q, visits, rewards, hyperparameters)


def _parse(text: str | bytes) -> dict[str, Any]:
    """Returns the fields of a file. Raises ValueError if it is none or has an unknown one."""
    data = strict_json.parse(text)
    if not isinstance(data, dict):
        raise ValueError("not an object of states")
    if not data:
        raise ValueError("an object without states is no model")
    if "q_table" not in data:
        return {"q_table": data}
    for name in data:
        if name not in _FIELDS:
            raise ValueError(f"{shown(name)}: no such field; a file has {', '.join(_FIELDS)}")
    return data


def _space(data: Any) -> StateSpace:
    if not isinstance(data, dict):
        raise ValueError(f"space: must be an object, not {shown(data)}")
    names = [field.name for field in fields(StateSpace)]
    for name in data:
        if name not in names:
            raise ValueError(f"space[{name!r}]: no such field; a space has {', '.join(names)}")
    try:
        return StateSpace.from_dict(data)
    except KeyError as error:
        raise ValueError(f"space: {error} is missing") from None
    except ValueError as error:
        raise ValueError(f"space: {error}") from None


def _check_hyperparameters(given: Any) -> None:
    """Raises ValueError unless these are hyperparameters of some algorithm, of the right types."""
    if not isinstance(given, dict):
        raise ValueError("hyperparameters: not an object")
    # Exported tables have those of their algorithm as well.
    known = {name: default for one in LEARNERS for name, default in parameters_of(one).items()}
    known |= {field.name: field.default for field in fields(Hyperparameters)}
    for name, value in given.items():
        where = f"hyperparameters[{name!r}]"
        if name not in known:
            raise ValueError(f"{where}: no algorithm has such a parameter")
        if isinstance(known[name], str):
            if not isinstance(value, str):
                raise ValueError(f"{where}: must be a text, not {shown(value)}")
        elif not (_is_number(value) or (value is None and known[name] is None)):
            raise ValueError(f"{where}: must be a number, not {shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def state_names(space: StateSpace, state: int) -> tuple[Any, ...]:
    """Returns a state as its key has it: five trait bins, content type, mood and time of day."""
    bins, context = space.decode(state)
    return *bins, context.content_type, context.mood, context.time_of_day


_ACTIONS = {action.to_tuple(): action.index for action in ACTIONS}
_UNREADABLE = (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError)
_NUMPY = re.compile(r"\b(np|numpy)\.\w+\(")


def _entries(
    table: Any, space: StateSpace, name: str
) -> Iterator[tuple[str, tuple[int, int], float]]:
    if not isinstance(table, dict):
        raise ValueError(f"{name}: not an object of states")
    actions = {str(names): index for names, index in _ACTIONS.items()}
    seen = set()
    for key, row in table.items():
        state = _state(key, space, name)
        if state in seen:
            raise ValueError(f"{name}[{key!r}]: this state is there twice")
        seen.add(state)
        if not isinstance(row, dict):
            raise ValueError(f"{name}[{key!r}]: not an object of actions")
        acted: set[int] = set()
        for text, value in row.items():
            where = f"{name}[{key!r}][{text!r}]"
            action = actions.get(text)
            if action is None:
                action = actions[text] = _action(text, where)
            if action in acted:
                raise ValueError(f"{where}: this action is there twice")
            acted.add(action)
            if not (_is_number(value) and -LARGEST_Q < value < LARGEST_Q):
                raise ValueError(f"{where}: not a finite number: {shown(value)}")
            yield where, (state, action), float(value)


def _action(text: str, where: str) -> int:
    """Returns the index of an action that is spelled in another way than `dump` does."""
    try:
        return _ACTIONS[literal_eval(text)]
    except _UNREADABLE:
        advice = _advice(text, ACTIONS[0].to_tuple())
        raise ValueError(f"{where}: no such action{advice}") from None


def _advice(text: str, example: tuple[Any, ...]) -> str:
    """Returns what is wrong with a key where NumPy's numbers or texts were written into it."""
    if _NUMPY.search(text) is None:
        return ""
    return f": write plain numbers and names instead of NumPy's, as in {example}"


def _state(key: str, space: StateSpace, name: str) -> int:
    try:
        *bins, content_type, mood, time_of_day = literal_eval(key)
        context = space.context(Context(content_type, mood, time_of_day))
        if len(bins) != len(TRAITS) or not all(type(b) is int for b in bins):
            raise ValueError
        if not all(0 <= b < space.bins for b in bins):
            raise ValueError
    except _UNREADABLE:
        advice = _advice(key, state_names(space, 0))
        raise ValueError(f"{name}[{key!r}]: no such state{advice}") from None
    cell = 0
    for trait_bin in bins:
        cell = cell * space.bins + trait_bin
    return cell * space.n_contexts + context
