"""Slow, plain versions of the learning core, written from its docstrings, to hold it to."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from rl.state import OUT_OF_VOCABULARY, UNKNOWN_PERSONALITY, StateSpace
from rl.transitions import Interactions

f32 = np.float32


class ReferenceAgent:
    """Q-learning on a dict of dicts, one update at a time, in float32."""

    def __init__(self, learning_rate: float, discount_factor: float) -> None:
        self.learning_rate = f32(learning_rate)
        self.discount_factor = f32(discount_factor)
        self.q: dict[int, dict[int, f32]] = defaultdict(dict)
        self.visits: dict[int, dict[int, int]] = defaultdict(dict)

    def update(self, state: int, action: int, reward: float, next_state: int | None) -> None:
        target = f32(reward)
        if next_state is not None and self.q.get(next_state):
            target = f32(target + f32(self.discount_factor * max(self.q[next_state].values())))
        old = self.q[state].get(action, f32(0.0))
        error = f32(target - old)
        self.q[state][action] = f32(old + f32(self.learning_rate * error))
        self.visits[state][action] = self.visits[state].get(action, 0) + 1

    def tables(self, n_states: int, n_actions: int) -> tuple[Any, Any]:
        q = np.zeros((n_states, n_actions), dtype=np.float32)
        visits = np.zeros((n_states, n_actions), dtype=np.int32)
        for table, rows in ((q, self.q), (visits, self.visits)):
            for state, row in rows.items():
                for action, value in row.items():
                    table[state, action] = value
        return q, visits


@dataclass(frozen=True)
class Row:
    """One logged interaction."""

    id: int
    user: int
    time: int
    state: int
    action: int = 0
    reward: float = 0.0


def columns(rows: list[Row]) -> Interactions:
    return Interactions(
        id=np.array([r.id for r in rows], dtype=np.int64),
        user=np.array([r.user for r in rows], dtype=np.int64),
        time=np.array([r.time for r in rows], dtype=np.int64),
        state=np.array([r.state for r in rows], dtype=np.int32),
        action=np.array([r.action for r in rows], dtype=np.uint8),
        reward=np.array([r.reward for r in rows], dtype=np.float32),
    )


@dataclass
class Prepared:
    """What `reference_prepare` found, in plain types."""

    transitions: list[tuple[int, int, float, int]] = field(default_factory=list)
    trained_ids: list[int] = field(default_factory=list)
    trained_through: dict[int, int] = field(default_factory=dict)
    first_waiting: dict[int, int] = field(default_factory=dict)
    waiting: int = 0
    out_of_vocabulary: int = 0


def reference_prepare(
    rows: list[Row],
    *,
    n_contexts: int,
    session_gap: int,
    settled_before: int,
    min_interactions: int,
) -> Prepared:
    people: dict[int, list[Row]] = {}
    for row in rows:
        people.setdefault(row.user, []).append(row)

    found = Prepared()
    learned: list[tuple[Row, int]] = []
    for user, theirs in people.items():
        reached: list[Row] = []
        for row in sorted(theirs, key=lambda r: r.id):
            if row.time >= settled_before or row.state == UNKNOWN_PERSONALITY:
                break
            reached.append(row)
        due = [row for row in reached if row.state != OUT_OF_VOCABULARY]
        if len(due) < min_interactions:
            found.first_waiting[user] = min(row.id for row in theirs)
            found.waiting += len(theirs)
            continue
        found.trained_through[user] = reached[-1].id
        left = sorted(row.id for row in theirs)[len(reached) :]
        if left:
            found.first_waiting[user] = left[0]
        found.waiting += len(left)
        found.out_of_vocabulary += len(reached) - len(due)
        timeline = sorted(theirs, key=lambda r: (r.time, r.id))
        for row in due:
            following = timeline[timeline.index(row) + 1 :][:1]
            next_state = -1
            for successor in following:
                near = successor.time - row.time <= session_gap
                known = successor.state >= 0
                same_cell = successor.state // n_contexts == row.state // n_contexts
                if near and known and same_cell:
                    next_state = successor.state
            learned.append((row, next_state))

    learned.sort(key=lambda pair: (pair[0].state // n_contexts, pair[0].time, pair[0].id))
    found.transitions = [(r.state, r.action, r.reward, following) for r, following in learned]
    found.trained_ids = [r.id for r, _ in learned]
    return found


def personality_kernel(space: StateSpace, width: float) -> Any:
    """Similarity of every pair of cells, float64 (n_cells, n_cells), pair by pair."""
    cells = list(product(range(space.bins), repeat=5))
    kernel = np.empty((len(cells), len(cells)))
    for i, one in enumerate(cells):
        for j, other in enumerate(cells):
            squares = sum(((a - b) * 100.0 / space.bins) ** 2 for a, b in zip(one, other))  # noqa: B905
            kernel[i, j] = np.exp(-0.5 * squares / width**2)
    return kernel


def reference_smooth(
    space: StateSpace,
    q: Any,
    visits: Any,
    rule_actions: Any,
    *,
    learning_rate: float,
    kernel_width: float,
    shrinkage: float,
    rule_bonus: float,
    levels: Any,
) -> Any:
    """Advantages, float64 (n_states, n_actions), one pair at a time over every pair of cells."""
    kernel = personality_kernel(space, kernel_width)
    n_contents, n_moods, n_times = space.context_shape
    contexts = list(product(range(n_contents), range(n_moods), range(n_times)))
    shape = (space.n_cells, len(contexts), q.shape[1])
    n = visits.reshape(shape).astype(np.float64)
    remaining = (1.0 - learning_rate) ** n
    mean = np.divide(
        q.reshape(shape).astype(np.float64), 1.0 - remaining, out=np.zeros(shape), where=n > 0
    )

    def pool(weights: Any, sums: Any, cell: int, which: list[int], action: int) -> tuple[Any, Any]:
        """Visits and sums of similar people in some contexts."""
        similarity = kernel[cell][:, None]
        return (
            (similarity * weights[:, which, action]).sum(),
            (similarity * sums[:, which, action]).sum(),
        )

    actions = range(shape[2])

    def refined(
        level: list[float], counts: list[float], totals: list[float], levels: Any
    ) -> list[float]:
        """One level down: by dimension, all actions of a level at once, then each by itself."""
        for dimension in levels:
            sharing = [[b for b in actions if dimension[b] == dimension[a]] for a in actions]
            level = [
                level[a]
                + sum(totals[b] - counts[b] * level[b] for b in sharing[a])
                / (sum(counts[b] for b in sharing[a]) + shrinkage)
                for a in actions
            ]
        return [(totals[a] + shrinkage * level[a]) / (counts[a] + shrinkage) for a in actions]

    def shrunk(weights: Any, sums: Any, levels: Any) -> Any:
        result = np.empty(shape)
        nothing = [0.0] * shape[2]
        of_all = (list(x.sum(axis=(0, 1))) for x in (weights, sums))
        everybody = refined(nothing, *of_all, levels)
        for cell, here in product(range(shape[0]), range(shape[1])):
            level = everybody
            for depth in range(4):
                alike = [i for i, c in enumerate(contexts) if c[:depth] == contexts[here][:depth]]
                pools = [pool(weights, sums, cell, alike, action) for action in actions]
                level = refined(level, *map(list, zip(*pools, strict=True)), levels)
            for a in actions:
                result[cell, here, a] = (sums[cell, here, a] + shrinkage * level[a]) / (
                    weights[cell, here, a] + shrinkage
                )
        return result

    value = n * mean
    others = shrunk(
        n.sum(axis=2, keepdims=True) - n, value.sum(axis=2, keepdims=True) - value, levels[:0]
    )
    expected = np.zeros(shape)
    for state, action in enumerate(rule_actions):
        cell, here = divmod(state, space.n_contexts)
        expected[cell, here, action] = rule_bonus
    deviation = shrunk(n, n * (mean - others - expected), levels)
    return (expected + deviation).reshape(q.shape)
