"""Slow, plain versions of the learning core, written from its docstrings, to hold it to."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recparams_rl.action import N_ACTIONS
from recparams_rl.basis import ACTION_COLUMNS, TRAIT_TERMS, Basis
from recparams_rl.regression import Curve, Prior, Rows
from recparams_rl.state import OUT_OF_VOCABULARY, UNKNOWN_PERSONALITY, StateSpace
from recparams_rl.transitions import Interactions

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


def design_matrix(basis: Basis, space: StateSpace, rows: Rows, traits: Any) -> Any:
    """All columns of all rows, one product at a time."""
    columns = np.zeros((len(rows.cell), basis.n_columns))
    for i, (cell, pair, rule) in enumerate(zip(rows.cell, rows.pair, rows.rule, strict=True)):
        context, action = divmod(int(pair), N_ACTIONS)
        for block in basis.blocks:
            of_context = basis.contexts[block.contexts][context]
            of_action = ACTION_COLUMNS[block.actions][action]
            columns[i, block.columns] = np.kron(
                np.kron(of_context, of_action), traits[cell, TRAIT_TERMS[block.traits]]
            )
        levels = np.array(np.unravel_index([int(rule), action], (3, 3, 3)))
        apart = np.abs(levels[:, 0] - levels[:, 1])
        columns[i, basis.distance] = [*(apart == 1), *(apart == 2), not apart.any()]
    return columns


def reference_fit(
    basis: Basis, x: Any, weight: Any, y: Any, prior: Prior, curve: Curve | None
) -> tuple[Any, Any, float]:
    """Mean and covariance of the coefficients and the noise, by dense algebra with inverses."""
    centre = np.average(y, weights=weight) if curve is None else curve.centre
    first_noise = 0.9 * np.mean(weight * (y - centre) ** 2)
    start, expected = prior.means(basis), prior.variances(basis)
    size = np.bincount(basis.group)
    mean, variance, noise = start, expected, first_noise
    covariance, w, target = np.diag(expected[basis.group]), weight, y
    for number in range(6):
        if number:
            unsure = np.bincount(basis.group, covariance.diagonal()) / variance
            effective = np.maximum(size - unsure, 0)
            moved = np.bincount(basis.group, (mean - start) ** 2)
            before, variance = variance, (moved + 2 * expected) / (effective + 2)
            misfit = (w * (target - x @ mean) ** 2).sum()
            noise = (misfit + 100 * first_noise) / (max(len(y) - effective.sum(), 1) + 100)
            if number > 1 and abs(variance / before - 1).max() < 0.05:
                break
        if number <= 3:
            eta = x @ mean
            value, slope = (centre + eta, 1.0 + 0 * eta) if curve is None else curve.at(eta)
            slope = np.maximum(slope, 0.05)
            target, w = eta + (y - value) / slope, weight * slope**2
        precision = np.diag(1 / variance[basis.group])
        covariance = np.linalg.inv(x.T @ (w[:, None] * x) / noise + precision)
        mean = covariance @ (x.T @ (w * target) / noise + precision @ start)
    return mean, covariance, noise
