"""Segments of a log: rows that share one value of one dimension."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recparams_rl.state import TRAITS, StateSpace

TERCILES = ("low", "middle", "high")


def dimensions(
    space: StateSpace, state: NDArray[np.int32], traits: NDArray[np.float32] | None
) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.int64]]]:
    """Yields each dimension, its values, and the position of each row among them, int64 (n,).

    Dimensions are content type, mood, time of day, and each trait by tercile.

    Args:
        space: the state space.
        state: int32 (n,), 0 to n_states - 1.
        traits: scores 0 to 100, float32 (n, 5), or None for no segments by trait.
    """
    of_context = np.unravel_index(np.arange(space.n_contexts), space.context_shape)
    names = {
        "content_type": space.content_types,
        "mood": space.moods,
        "time_of_day": space.times_of_day,
    }
    for (dimension, words), positions in zip(names.items(), of_context, strict=True):
        yield dimension, words, positions.astype(np.int64)[state % space.n_contexts]
    if traits is None:
        return
    for position, trait in enumerate(TRAITS):
        scores = traits[:, position]
        edges = np.quantile(scores, (1 / 3, 2 / 3)) if len(scores) else np.zeros(2)
        yield trait, TERCILES, np.searchsorted(edges, scores, side="right").astype(np.int64)


def segments(
    space: StateSpace, state: NDArray[np.int32], traits: NDArray[np.float32] | None
) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yields dimension, value and a mask of rows, bool (n,), of every segment that has rows.

    Arguments are as in `dimensions`.
    """
    for dimension, words, positions in dimensions(space, state, traits):
        for position, word in enumerate(words):
            rows = positions == position
            if rows.any():
                yield dimension, word, rows
