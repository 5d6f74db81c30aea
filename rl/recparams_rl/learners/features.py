"""Features of a state with its continuous scores, for learners that generalise over them.

Everything that depends on the scores is in a few *terms*: 1, the five scores and their squares. The
features of a state are the terms times a matrix that depends on its context alone, so that a linear
function of the features is, in each context, one of the terms.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recparams_rl.policy import Traits
from recparams_rl.state import TRAITS, StateSpace, context_one_hots

Floats = NDArray[np.float64]

N_TERMS = 1 + 2 * len(TRAITS)


def terms(traits: Traits) -> Floats:
    """Returns 1, scores scaled to -1 to 1, and their squares, float64 (n, 11).

    Args:
        traits: scores 0 to 100, (n, 5).
    """
    scores = np.asarray(traits, dtype=np.float64) / 50.0 - 1.0
    return np.hstack([np.ones((len(scores), 1)), scores, scores**2])


@lru_cache(maxsize=4)
def expansion(space: StateSpace) -> Floats:
    """Returns the matrices from terms to features, read-only float64 (n_contexts, 11, k).

    The features are the terms; 1 for the content type, the mood, the time of day, and the content
    type with the mood, one place for each; and the scores once for each content type and mood.
    """
    content, mood, time, pairs = context_one_hots(space)
    words = np.hstack([content, mood, time, pairs])
    by_score = np.hstack([content, mood])
    n_words, n_by_score = words.shape[1], by_score.shape[1]
    found = np.zeros((space.n_contexts, N_TERMS, N_TERMS + n_words + len(TRAITS) * n_by_score))
    found[:, :, :N_TERMS] = np.eye(N_TERMS)
    found[:, 0, N_TERMS : N_TERMS + n_words] = words
    for trait in range(len(TRAITS)):
        first = N_TERMS + n_words + trait * n_by_score
        found[:, 1 + trait, first : first + n_by_score] = by_score
    found.setflags(write=False)
    return found


def n_features(space: StateSpace) -> int:
    """Returns the number of features of a state."""
    return int(expansion(space).shape[2])


def by_context(context: NDArray[np.integer[Any]]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yields each context that occurs in a column of shape (n,), with its rows."""
    order = np.argsort(context, kind="stable")
    found, first = np.unique(context[order], return_index=True)
    # Of nothing, split would make one empty piece.
    yield from zip(found.tolist(), np.split(order, first)[1:], strict=True)
