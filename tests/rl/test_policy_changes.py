"""Where two policies differ: counts agree with counting one by one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import N_ACTIONS
from recparams_rl.evaluation.policy_changes import Seen, policy_change
from recparams_rl.policy import LEARNED, GreedyTable
from recparams_rl.state import TRAITS, StateSpace

SPACE = StateSpace(bins=1, moods=("calm", "sad"), times_of_day=("night",))


def policy(actions: list[int]) -> GreedyTable:
    return GreedyTable(SPACE, bytes(actions), bytes([LEARNED]) * SPACE.n_states, 0.3)


actions = st.lists(st.integers(0, N_ACTIONS - 1), min_size=SPACE.n_states, max_size=SPACE.n_states)
rows = st.lists(st.tuples(st.integers(0, SPACE.n_states - 1), st.integers(0, 5)), max_size=40)


@settings(max_examples=50, deadline=None)
@given(actions, actions, rows)
def test_counts(before: list[int], after: list[int], seen: list[tuple[int, int]]) -> None:
    state = np.array([one[0] for one in seen], dtype=np.int32)
    person = np.array([one[1] for one in seen], dtype=np.int64)
    traits = np.tile(person[:, None], (1, len(TRAITS))).astype(np.float32)
    found = policy_change(SPACE, Seen(state, person, traits), policy(before), policy(after))

    different = [(s, p) for s, p in seen if before[s] != after[s]]
    assert found.counts.interactions == len(seen)
    assert found.counts.changed_interactions == len(different)
    assert found.counts.people == len({p for _, p in seen})
    assert found.counts.changed_people == len({p for _, p in different})
    assert found.changed_states == sum(a != b for a, b in zip(before, after, strict=True))
    for dimension in ("content_type", "mood", "time_of_day", *TRAITS):
        parts = [one.counts for one in found.segments if one.dimension == dimension]
        assert sum(one.interactions for one in parts) == len(seen)
        assert sum(one.changed_interactions for one in parts) == len(different)
        assert all(one.changed_people <= one.people <= found.counts.people for one in parts)
    sad = [(s, p) for s, p in different if SPACE.decode(s)[1].mood == "sad"]
    counted = [
        one.counts for one in found.segments if (one.dimension, one.value) == ("mood", "sad")
    ]
    assert sum(one.changed_people for one in counted) == len({p for _, p in sad})

    moves = [(before[s], after[s]) for s, _ in different]
    assert {(one.before, one.after): one.interactions for one in found.replacements} == {
        move: moves.count(move) for move in moves
    }
    sizes = [one.interactions for one in found.replacements]
    assert sizes == sorted(sizes, reverse=True)
