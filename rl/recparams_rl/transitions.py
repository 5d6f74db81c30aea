"""Transitions (state, action, reward, next_state) made of logged interactions.

Consecutive interactions of one person within `session_gap` chain; any other successor, or one in
another personality cell, ends the episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.compiled import Compiled
from recparams_rl.numerics import unique_inverse
from recparams_rl.state import OUT_OF_VOCABULARY, UNKNOWN_PERSONALITY

TERMINAL = -1
"""next_state of the last transition of an episode."""


@dataclass(frozen=True)
class Interactions:
    """Columns of n logged interactions, in any order, each of shape (n,).

    Attributes:
        id: int64, unique, in order of arrival.
        user: int64, person of each interaction.
        time: int64, microseconds since any fixed instant.
        state: int32, a state index, or `UNKNOWN_PERSONALITY`, or `OUT_OF_VOCABULARY`.
        action: uint8, 0 to 26.
        reward: float32.
        traits: scores 0 to 100, float32 (n, 5), or None if no learner needs them.
    """

    id: NDArray[np.int64]
    user: NDArray[np.int64]
    time: NDArray[np.int64]
    state: NDArray[np.int32]
    action: NDArray[np.uint8]
    reward: NDArray[np.float32]
    traits: NDArray[np.float32] | None = None

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Interactions":
        return Interactions(
            self.id[rows],
            self.user[rows],
            self.time[rows],
            self.state[rows],
            self.action[rows],
            self.reward[rows],
            None if self.traits is None else self.traits[rows],
        )


@dataclass(frozen=True)
class Transitions:
    """Columns of m transitions, in the order of learning.

    Attributes:
        state: int32 (m,).
        action: uint8 (m,).
        reward: float32 (m,).
        next_state: int32 (m,), `TERMINAL` if the episode ends.
        traits: scores 0 to 100, float32 (m, 5), or None if no learner needs them.
    """

    state: NDArray[np.int32]
    action: NDArray[np.uint8]
    reward: NDArray[np.float32]
    next_state: NDArray[np.int32]
    traits: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp] | slice) -> "Transitions":
        return Transitions(
            self.state[rows],
            self.action[rows],
            self.reward[rows],
            self.next_state[rows],
            None if self.traits is None else self.traits[rows],
        )


@dataclass(frozen=True)
class TrainedThrough:
    """Highest interaction id trained of each person.

    Attributes:
        users: int64 (u,), ascending.
        ids: int64 (u,), the highest id of each that was trained or passed over.
    """

    users: NDArray[np.int64]
    ids: NDArray[np.int64]

    @classmethod
    def nothing(cls) -> "TrainedThrough":
        """Returns a record without people."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64))

    def merged(self, other: "TrainedThrough") -> "TrainedThrough":
        """Returns the people of both records, with the higher id if both have a person."""
        users = np.union1d(self.users, other.users)
        ids = np.zeros(len(users), dtype=np.int64)
        for one in (self, other):
            at = np.searchsorted(users, one.users)
            ids[at] = np.maximum(ids[at], one.ids)
        return TrainedThrough(users, ids)

    def covers(self, user: NDArray[np.int64], id_: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns True for each interaction that was trained; columns of shape (n,)."""
        if not len(self.users):
            return np.zeros(len(user), dtype=np.bool_)
        at = np.minimum(np.searchsorted(self.users, user), len(self.users) - 1)
        trained: NDArray[np.bool_] = (self.users[at] == user) & (id_ <= self.ids[at])
        return trained

    def to_bytes(self) -> bytes:
        """Serialises both columns, little-endian."""
        return self.users.astype("<i8").tobytes() + self.ids.astype("<i8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> "TrainedThrough":
        """Makes a record from the result of `to_bytes`."""
        users, ids = np.frombuffer(data, dtype="<i8").astype(np.int64).reshape(2, -1)
        return cls(users, ids)


@dataclass(frozen=True)
class Due:
    """People and interactions that a run trains, and those that it leaves for later.

    Attributes:
        users: int64 (u,), the people trained, ascending.
        trained_through: int64 (u,), the highest id of each that is trained or passed over.
        waiting_users: int64 (w,), the people of whom something is left, ascending.
        first_waiting: int64 (w,), the lowest id that is left of each of them.
        waiting: interactions left for a later run.
        out_of_vocabulary: interactions passed over because the state space does not know their
            context.
    """

    users: NDArray[np.int64]
    trained_through: NDArray[np.int64]
    waiting_users: NDArray[np.int64]
    first_waiting: NDArray[np.int64]
    waiting: int
    out_of_vocabulary: int

    def due(self) -> dict[str, Any]:
        """Returns the fields of `Due` by name."""
        return {field.name: getattr(self, field.name) for field in fields(Due)}

    @classmethod
    def joined(cls, parts: Sequence["Due"]) -> "Due":
        """Returns what parts of the people, at least one, are due, none of whom is in two."""

        def column(name: str) -> NDArray[np.int64]:
            return np.concatenate([getattr(one, name) for one in parts])

        users, waiting = column("users"), column("waiting_users")
        by_user, by_waiting = np.argsort(users), np.argsort(waiting)
        return Due(
            users=users[by_user],
            trained_through=column("trained_through")[by_user],
            waiting_users=waiting[by_waiting],
            first_waiting=column("first_waiting")[by_waiting],
            waiting=sum(one.waiting for one in parts),
            out_of_vocabulary=sum(one.out_of_vocabulary for one in parts),
        )


@dataclass(frozen=True)
class Batch(Due):
    """Transitions of one training run.

    Attributes:
        transitions: sorted by (personality cell, time, id).
        rows: int64 (m,), position of each transition among the interactions.
    """

    transitions: Transitions
    rows: NDArray[np.int64]


def prepare(
    interactions: Interactions,
    *,
    n_contexts: int,
    session_gap: int,
    settled_before: int,
    min_interactions: int,
) -> Batch:
    """Chains untrained interactions into transitions and chooses which are due.

    A person's interactions are due up to the first (by id) that waits: one that happened at or
    after `settled_before`, or whose personality is unknown. What comes after it waits too, so that
    "everything up to an id" stays true of what was trained. A person with fewer than
    `min_interactions` due waits altogether. Interactions that wait still serve as next states.

    Args:
        interactions: untrained interactions.
        n_contexts: states per personality cell.
        session_gap: longest pause within an episode, microseconds.
        settled_before: first instant that is too recent to train, in the unit of `time`.
        min_interactions: least number due for a person to be trained, at least 1.
    """
    order = _by_time(interactions)
    people, person = unique_inverse(interactions.user)
    ids, times, state = interactions.id, interactions.time, interactions.state
    if order is not None:
        ids, times, state, person = ids[order], times[order], state[order], person[order]
    waits = (times >= settled_before) | (state == UNKNOWN_PERSONALITY)
    blocked_from = _lowest(person, ids, waits, len(people))
    due, through, first, trained_of = _due(person, ids, state, blocked_from)
    included = trained_of >= min_interactions
    trained = due & included[person]
    passed_over = (ids < blocked_from[person]) & ~due & included[person]
    left = ~included | (blocked_from < np.iinfo(np.int64).max)
    next_state = _next_states(person, times, state, len(people), n_contexts, session_gap)
    rows, states, actions, rewards, next_states = _by_cell(
        np.empty(0, np.int64) if order is None else order,
        trained,
        state,
        next_state,
        interactions.action,
        interactions.reward,
        n_contexts,
    )
    traits = None if interactions.traits is None else interactions.traits[rows]
    return Batch(
        transitions=Transitions(states, actions, rewards, next_states, traits),
        rows=rows,
        users=people[included],
        trained_through=through[included],
        waiting_users=people[left],
        first_waiting=np.where(included, blocked_from, first)[left],
        waiting=int(len(ids) - np.count_nonzero(trained) - np.count_nonzero(passed_over)),
        out_of_vocabulary=int(np.count_nonzero(passed_over)),
    )


def _by_time(interactions: Interactions) -> NDArray[np.int64] | None:
    """Returns the order by (time, id); None if they are in it, as they mostly arrive."""
    ids, times = interactions.id, interactions.time
    later = times[1:] > times[:-1]
    if (later | ((times[1:] == times[:-1]) & (ids[1:] > ids[:-1]))).all():
        return None
    return np.lexsort((ids, times)).astype(np.int64)


@Compiled
def _lowest(
    person: NDArray[np.int32],
    ids: NDArray[np.int64],
    among: NDArray[np.bool_],
    n_people: int,
) -> NDArray[np.int64]:
    """Returns the lowest id of each person among some rows, the highest int64 if there is none."""
    lowest = np.full(n_people, np.iinfo(np.int64).max)
    for i in range(len(ids)):
        if among[i] and ids[i] < lowest[person[i]]:
            lowest[person[i]] = ids[i]
    return lowest


@Compiled
def _due(
    person: NDArray[np.int32],
    ids: NDArray[np.int64],
    state: NDArray[np.int32],
    blocked_from: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Returns a mask of rows due, and of each person the highest and lowest id and number due."""
    n_people = len(blocked_from)
    due = np.zeros(len(ids), dtype=np.bool_)
    through = np.zeros(n_people, dtype=np.int64)
    first = np.full(n_people, np.iinfo(np.int64).max)
    count = np.zeros(n_people, dtype=np.int64)
    for i in range(len(ids)):
        p = person[i]
        first[p] = min(first[p], ids[i])
        if ids[i] < blocked_from[p]:
            through[p] = max(through[p], ids[i])
            if state[i] != OUT_OF_VOCABULARY:
                due[i] = True
                count[p] += 1
    return due, through, first, count


@Compiled
def _next_states(
    person: NDArray[np.int32],
    times: NDArray[np.int64],
    state: NDArray[np.int32],
    n_people: int,
    n_contexts: int,
    session_gap: int,
) -> NDArray[np.int32]:
    """Returns the next states of rows sorted by (time, id)."""
    next_state = np.full(len(state), TERMINAL, dtype=np.int32)
    following = np.full(n_people, -1, dtype=np.int64)
    for i in range(len(state) - 1, -1, -1):
        j = following[person[i]]
        following[person[i]] = i
        if (
            j >= 0
            and times[j] - times[i] <= session_gap
            and state[i] >= 0
            and state[j] >= 0
            and state[i] // n_contexts == state[j] // n_contexts
        ):
            next_state[i] = state[j]
    return next_state


@Compiled
def _by_cell(
    order: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    state: NDArray[np.int32],
    next_state: NDArray[np.int32],
    action: NDArray[np.uint8],
    reward: NDArray[np.float32],
    n_contexts: int,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.uint8],
    NDArray[np.float32],
    NDArray[np.int32],
]:
    """Sorts chosen rows by personality cell, otherwise in their order (counting sort).

    Writes to as many places as there are cells, which the caches hold, and reads in order: picking
    the columns one by one would read all over them.

    Args:
        order: position of each row in `action` and `reward`, or empty for its own.
        chosen, state, next_state: of each row.
        action, reward: of each interaction.
        n_contexts: states per personality cell.

    Returns:
        Of the sorted rows: positions as in `order`, states, actions, rewards and next states.
    """
    n_cells = 1
    for i in range(len(state)):
        if chosen[i]:
            n_cells = max(n_cells, state[i] // n_contexts + 1)
    start = np.zeros(n_cells + 1, dtype=np.int64)
    for i in range(len(state)):
        if chosen[i]:
            start[state[i] // n_contexts + 1] += 1
    start = np.cumsum(start)
    n = start[-1]
    rows, states = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int32)
    actions, rewards = np.empty(n, dtype=np.uint8), np.empty(n, dtype=np.float32)
    next_states = np.empty(n, dtype=np.int32)
    for i in range(len(state)):
        if chosen[i]:
            cell = state[i] // n_contexts
            place = start[cell]
            start[cell] = place + 1
            row = order[i] if len(order) else i
            rows[place], states[place], next_states[place] = row, state[i], next_state[i]
            actions[place], rewards[place] = action[row], reward[row]
    return rows, states, actions, rewards, next_states
