"""Columns of the regression on a table of values: actions x contexts x personality traits.

A value is a sum of *blocks*. Each is the product of a basis of the actions (1, or the linear or the
quadratic contrast of each dimension's levels), one of the contexts (1, content type, mood, time of
day, and their pairs) and one of the traits (1, scores, squares, products of two): the smoothing-
spline ANOVA of Wahba, "Spline Models for Observational Data", 1990, ch. 10, in a small polynomial
basis. A last block is the distance from the rules' action. All columns but the last block's have a
mean square of about 1, so that variances of coefficients compare.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.action import ACTION_LEVELS, N_ACTIONS, N_LEVELS
from recparams_rl.state import TRAITS, StateSpace

Floats = NDArray[np.float64]

ONE = "one"
LINEAR, QUADRATIC = "linear", "quadratic"
CONTENT, MOOD, TIME = "content", "mood", "time"
CONTENT_MOOD, CONTENT_TIME, MOOD_TIME = "content_mood", "content_time", "mood_time"
SCORES, SQUARES, PRODUCTS = "scores", "squares", "products"

_FEW = (
    (ONE, ONE),
    (CONTENT, ONE),
    (MOOD, ONE),
    (TIME, ONE),
    (ONE, SCORES),
    (ONE, SQUARES),
    (CONTENT_MOOD, ONE),
    (CONTENT_TIME, ONE),
    (CONTENT, SCORES),
    (MOOD, SCORES),
)
_TERMS = {
    ONE: (*_FEW, (ONE, PRODUCTS)),
    LINEAR: (*_FEW, (MOOD_TIME, ONE), (TIME, SCORES), (ONE, PRODUCTS)),
    QUADRATIC: (*_FEW, (TIME, SCORES)),
}
_ORDER = {ONE: 0, CONTENT_MOOD: 2, CONTENT_TIME: 2, MOOD_TIME: 2, SQUARES: 2, PRODUCTS: 2}
"""Order of a term; those that are not listed have order 1."""

_N_TRAITS = len(TRAITS)
_FIRST, _SECOND = np.triu_indices(_N_TRAITS, 1)
TRAIT_TERMS = {
    ONE: slice(0, 1),
    SCORES: slice(1, 1 + _N_TRAITS),
    SQUARES: slice(1 + _N_TRAITS, 1 + 2 * _N_TRAITS),
    PRODUCTS: slice(1 + 2 * _N_TRAITS, 1 + 2 * _N_TRAITS + len(_FIRST)),
}
N_TRAIT_TERMS = TRAIT_TERMS[PRODUCTS].stop
LAST_SCORE, LAST_SQUARE = TRAIT_TERMS[SCORES].stop - 1, TRAIT_TERMS[SQUARES].stop - 1
"""Terms of the last trait alone."""
BEFORE_LAST = [0, *range(1, _N_TRAITS)]
TIMES_LAST = [LAST_SCORE, *(TRAIT_TERMS[PRODUCTS].start + np.flatnonzero(_SECOND == _N_TRAITS - 1))]
"""Terms without the last trait, and what they are when multiplied by its score."""
BESIDE_LAST = sorted({*range(N_TRAIT_TERMS)} - {LAST_SQUARE, *TIMES_LAST})
"""All terms without the last trait."""


def _contrasts(n_levels: int) -> Floats:
    """Returns the linear and the quadratic contrast of a dimension's levels, (n_levels, 2)."""
    level = np.arange(n_levels) - (n_levels - 1) / 2
    columns = np.stack([level, level**2 - (level**2).mean()], axis=1)
    scaled: Floats = columns / np.sqrt((columns**2).mean(axis=0))
    return scaled


_BY_DIMENSION = [_contrasts(n)[levels] for n, levels in zip(N_LEVELS, ACTION_LEVELS, strict=True)]
ACTION_COLUMNS: dict[str, Floats] = {
    ONE: np.ones((N_ACTIONS, 1)),
    LINEAR: np.stack([one[:, 0] for one in _BY_DIMENSION], axis=1),
    QUADRATIC: np.stack([one[:, 1] for one in _BY_DIMENSION], axis=1),
}

_APART = np.abs(ACTION_LEVELS[:, :, None] - ACTION_LEVELS[:, None, :])
DISTANCE: Floats = (
    np.concatenate([_APART == 1, _APART == 2, (_APART.sum(axis=0) == 0)[None]])
    .transpose(1, 2, 0)
    .astype(np.float64)
)
"""Distance of an action from another: one level apart and two in each dimension, and equal.

float64 (27, 27, 7), 0 or 1."""
N_DISTANCES = DISTANCE.shape[2]


def trait_columns(standardised: Floats) -> Floats:
    """Returns 1, the scores, their squares and products, for scores (n, 5), float64 (n, 21)."""
    z = standardised
    return np.hstack(
        [np.ones((len(z), 1)), z, (z * z - 1.0) / np.sqrt(2.0), z[:, _FIRST] * z[:, _SECOND]]
    )


@dataclass(frozen=True)
class Block:
    """One product of bases, by name, and its place among the coefficients."""

    actions: str
    contexts: str
    traits: str
    columns: slice

    @property
    def order(self) -> int:
        """Order of interaction of its context and its traits."""
        return _ORDER.get(self.contexts, 1) + _ORDER.get(self.traits, 1)


class Basis:
    """All columns for the contexts of a state space.

    Attributes:
        contexts: columns of each basis of contexts, by name, float64 (n_contexts, k).
        blocks: products of bases.
        distance: place of the coefficients of `DISTANCE`, after all blocks.
        n_columns: number of coefficients.
        group: the group of each coefficient, which share one variance, int64 (n_columns,).
        order: order of each group, int64 (n_groups,).
    """

    def __init__(self, space: StateSpace) -> None:
        content, mood, time = np.unravel_index(np.arange(space.n_contexts), space.context_shape)
        contents, moods, times = space.context_shape
        self.contexts: dict[str, Floats] = {
            ONE: np.ones((space.n_contexts, 1)),
            CONTENT: _one_hot(content, contents),
            MOOD: _one_hot(mood, moods),
            TIME: _one_hot(time, times),
            CONTENT_MOOD: _one_hot(content * moods + mood, contents * moods),
            CONTENT_TIME: _one_hot(content * times + time, contents * times),
            MOOD_TIME: _one_hot(mood * times + time, moods * times),
        }
        self.blocks = list[Block]()
        groups, orders, start = list[NDArray[np.int64]](), list[int](), 0
        for actions, terms in _TERMS.items():
            for contexts, traits in terms:
                shape = self._shape(actions, contexts, traits)
                size = int(np.prod(shape))
                block = Block(actions, contexts, traits, slice(start, start + size))
                self.blocks.append(block)
                # Each dimension of the action has a variance of its own.
                own = len(orders) + np.arange(shape[1])[None, :, None]
                groups.append(np.broadcast_to(own, shape).ravel())
                orders += [block.order] * shape[1]
                start += size
        self.distance = slice(start, start + N_DISTANCES)
        groups.append(np.full(N_DISTANCES, len(orders)))
        self.n_columns = start + N_DISTANCES
        self.group = np.concatenate(groups)
        self.order = np.array([*orders, 0])
        self._both = dict[tuple[str, str], Floats]()

    def _shape(self, actions: str, contexts: str, traits: str) -> tuple[int, int, int]:
        """Returns the numbers of columns of contexts, actions and traits, the order of a block."""
        terms = TRAIT_TERMS[traits]
        return (
            self.contexts[contexts].shape[1],
            ACTION_COLUMNS[actions].shape[1],
            terms.stop - terms.start,
        )

    @cached_property
    def _products(self) -> dict[tuple[str, str], Floats]:
        """Columns of contexts x actions of each pair of bases, (n_contexts * 27, k)."""
        return {
            (block.actions, block.contexts): np.kron(
                self.contexts[block.contexts], ACTION_COLUMNS[block.actions]
            ).astype(np.float64)
            for block in self.blocks
        }

    def _sum_over_contexts(self, contexts: str, others: str, summed: Floats) -> Floats:
        """Returns the result of `_sum_over_actions`, summed over contexts, (k, x, t, m, y, u)."""
        one, other = self.contexts[contexts], self.contexts[others]
        if (contexts, others) not in self._both:
            both = one[:, :, None] * other[:, None, :]
            self._both[contexts, others] = both.reshape(len(both), -1)
        n_contexts, x, y, t, u = summed.shape
        total: Floats = self._both[contexts, others].T @ summed.reshape(n_contexts, -1)
        shape = one.shape[1], other.shape[1], x, y, t, u
        return total.reshape(shape).transpose(0, 2, 4, 1, 3, 5)

    def design(
        self,
        context: NDArray[np.integer[Any]],
        action: NDArray[np.integer[Any]],
        rule: NDArray[np.integer[Any]],
        traits: Floats,
    ) -> Floats:
        """Returns all columns of n rows, (n, n_columns).

        Args:
            context, action: of each row, (n,).
            rule: the rules' action there, (n,).
            traits: trait terms of each row, (n, 21).
        """
        columns = np.empty((len(context), self.n_columns))
        for block in self.blocks:
            columns[:, block.columns] = np.einsum(
                "nk,na,nt->nkat",
                self.contexts[block.contexts][context],
                ACTION_COLUMNS[block.actions][action],
                traits[:, TRAIT_TERMS[block.traits]],
            ).reshape(len(context), -1)
        columns[:, self.distance] = DISTANCE[rule, action]
        return columns

    def by_trait_term(self, coefficients: Floats) -> Floats:
        """Returns the factor on each trait term, for each context and action.

        Args:
            coefficients: (n_columns,) or, of m sets, (n_columns, m).

        Returns:
            float64 (n_contexts, 27, 21) or (n_contexts, 27, 21, m).
        """
        sets = coefficients.reshape(self.n_columns, -1)
        n = len(self.contexts[ONE]) * N_ACTIONS
        found = np.zeros((n, N_TRAIT_TERMS, sets.shape[1]))
        for block in self.blocks:
            columns = self._products[block.actions, block.contexts]
            part = sets[block.columns].reshape(columns.shape[1], -1)
            terms = TRAIT_TERMS[block.traits]
            found[:, terms] += (columns @ part).reshape(n, -1, sets.shape[1])
        return found.reshape(-1, N_ACTIONS, N_TRAIT_TERMS, *coefficients.shape[1:])

    def by_distance(self, coefficients: Floats) -> Floats:
        """Returns what the distance from the rules' action adds, by rule and action.

        Args:
            coefficients: (n_columns,) or, of m sets, (n_columns, m).

        Returns:
            float64 (27, 27) or (27, 27, m).
        """
        added: Floats = DISTANCE @ coefficients[self.distance]
        return added

    def normal_equations(self, squares: Floats, sums: Floats) -> tuple[Floats, Floats]:
        """Returns the normal matrix and the right-hand side of a weighted least-squares problem.

        Args:
            squares: weighted sums of products of the trait terms and the distances from the rules'
                action, for each context and action, float64 (n_contexts, 27, 28, 28).
            sums: weighted sums of each of them times the target, (n_contexts, 27, 28).

        Returns:
            float64 (n_columns, n_columns), symmetric, and (n_columns,).
        """
        matrix = np.zeros((self.n_columns, self.n_columns))
        right = np.zeros(self.n_columns)
        distances = slice(N_TRAIT_TERMS, N_TRAIT_TERMS + N_DISTANCES)
        matrix[self.distance, self.distance] = squares[:, :, distances, distances].sum(axis=(0, 1))
        right[self.distance] = sums[:, :, distances].sum(axis=(0, 1))
        over_actions: dict[tuple[str, ...], Floats] = {}
        of_terms: dict[tuple[str, ...], Floats] = {}
        by_rule: dict[tuple[str, ...], tuple[Floats, Floats]] = {}
        for i, block in enumerate(self.blocks):
            terms, columns = TRAIT_TERMS[block.traits], block.columns
            of_actions, of_contexts = ACTION_COLUMNS[block.actions], self.contexts[block.contexts]
            if (block.actions, block.traits) not in by_rule:
                by_rule[block.actions, block.traits] = (
                    np.einsum("ax,cat->cxt", of_actions, sums[:, :, terms]),
                    np.einsum("ax,catd->cxtd", of_actions, squares[:, :, terms, distances]),
                )
            summed, with_rules = by_rule[block.actions, block.traits]
            right[columns] = np.tensordot(of_contexts, summed, axes=(0, 0)).ravel()
            cross = np.tensordot(of_contexts, with_rules, axes=(0, 0))
            matrix[columns, self.distance] = cross.reshape(-1, N_DISTANCES)
            matrix[self.distance, columns] = matrix[columns, self.distance].T
            for other in self.blocks[: i + 1]:
                key = block.actions, block.traits, other.actions, other.traits
                if key not in over_actions:
                    if (block.traits, other.traits) not in of_terms:
                        products = squares[:, :, terms, TRAIT_TERMS[other.traits]]
                        of_terms[block.traits, other.traits] = np.ascontiguousarray(products)
                    over_actions[key] = _sum_over_actions(
                        of_actions,
                        ACTION_COLUMNS[other.actions],
                        of_terms[block.traits, other.traits],
                    )
                part = self._sum_over_contexts(block.contexts, other.contexts, over_actions[key])
                if other is block:
                    part = part.transpose(3, 4, 5, 0, 1, 2)
                # Its axes can be split without a copy.
                matrix[columns, other.columns].reshape(part.shape)[...] = part
            matrix[: columns.start, columns] = matrix[columns, : columns.start].T
        return matrix, right


def basis_of(space: StateSpace) -> Basis:
    """Returns the basis of a state space, made once for all spaces with the same contexts."""
    return _basis(replace(space, bins=1, cuts=()))


@lru_cache(maxsize=2)
def _basis(contexts: StateSpace) -> Basis:
    return Basis(contexts)


def _one_hot(position: NDArray[np.intp], n: int) -> Floats:
    """Returns one-hot columns with a mean square of 1 where all are equally frequent, (m, n)."""
    encoded: Floats = np.eye(n)[position] * np.sqrt(n)
    return encoded


def _sum_over_actions(columns: Floats, others: Floats, squares: Floats) -> Floats:
    """Returns squares (contexts, 27, t, u), summed over the actions, as (contexts, x, y, t, u)."""
    n_contexts, n_actions, t, u = squares.shape
    both = (columns[:, :, None] * others[:, None, :]).reshape(n_actions, -1)
    summed = both.T @ squares.reshape(n_contexts, n_actions, t * u)
    return summed.reshape(n_contexts, columns.shape[1], others.shape[1], t, u)
