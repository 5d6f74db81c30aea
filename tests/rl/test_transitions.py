"""Transitions: a slow reference, episodes at their edges, and training each interaction once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.q_learning import train
from recparams_rl.state import OUT_OF_VOCABULARY, UNKNOWN_PERSONALITY
from recparams_rl.transitions import TERMINAL, Batch, Transitions, prepare
from tests.rl.reference import Prepared, Row, columns, reference_prepare

N_CONTEXTS = 4
N_CELLS = 3
N_STATES = N_CONTEXTS * N_CELLS
N_ACTIONS = 3
GAP = 5
NEVER = 2**62

anything = st.one_of(
    st.integers(0, N_STATES - 1),
    st.integers(0, N_CONTEXTS - 1),
    st.sampled_from([UNKNOWN_PERSONALITY, OUT_OF_VOCABULARY]),
)
known = st.integers(0, N_STATES - 1)
sometimes_foreign = st.one_of(known, known, known, st.just(OUT_OF_VOCABULARY))


@st.composite
def logs(draw: st.DrawFn, states: st.SearchStrategy[int] = anything) -> list[Row]:
    """Logs of a few people with ties in time, ids out of step with times, in any order."""
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 40), states, st.integers(0, N_ACTIONS - 1)),
            max_size=30,
        )
    )
    ids = draw(st.lists(st.integers(1, 500), min_size=len(rows), max_size=len(rows), unique=True))
    # The reward is the id: float32 holds it exactly, and transitions can be told apart by it.
    return [Row(i, *row, reward=float(i)) for i, row in zip(ids, rows, strict=True)]


@st.composite
def logs_in_order(draw: st.DrawFn, states: st.SearchStrategy[int] = known) -> list[Row]:
    """Logs whose ids rise with time, as they do when interactions are recorded as they happen."""
    rows = draw(logs(states))
    times = sorted(row.time for row in rows)
    ids = sorted(row.id for row in rows)
    return [
        replace(row, id=i, time=time, reward=float(i))
        for row, i, time in zip(rows, ids, times, strict=True)
    ]


def prepared(
    rows: list[Row], *, settled_before: int = NEVER, min_interactions: int = 1, gap: int = GAP
) -> Batch:
    return prepare(
        columns(rows),
        n_contexts=N_CONTEXTS,
        session_gap=gap,
        settled_before=settled_before,
        min_interactions=min_interactions,
    )


def listed(transitions: Transitions) -> list[tuple[int, int, float, int]]:
    return list(
        zip(
            transitions.state.tolist(),
            transitions.action.tolist(),
            transitions.reward.tolist(),
            transitions.next_state.tolist(),
            strict=True,
        )
    )


def in_plain_types(batch: Batch) -> Prepared:
    return Prepared(
        transitions=listed(batch.transitions),
        trained_ids=[int(reward) for reward in batch.transitions.reward],
        trained_through=dict(
            zip(batch.users.tolist(), batch.trained_through.tolist(), strict=True)
        ),
        first_waiting=dict(
            zip(batch.waiting_users.tolist(), batch.first_waiting.tolist(), strict=True)
        ),
        waiting=batch.waiting,
        out_of_vocabulary=batch.out_of_vocabulary,
    )


@settings(max_examples=400)
@given(logs(), st.integers(0, 45), st.integers(1, 5), st.integers(0, 10))
def test_it_equals_the_slow_reference(
    rows: list[Row], settled_before: int, least: int, gap: int
) -> None:
    batch = prepared(rows, settled_before=settled_before, min_interactions=least, gap=gap)
    assert in_plain_types(batch) == reference_prepare(
        rows,
        n_contexts=N_CONTEXTS,
        session_gap=gap,
        settled_before=settled_before,
        min_interactions=least,
    )
    assert batch.users.tolist() == sorted(batch.users.tolist())
    assert batch.waiting_users.tolist() == sorted(batch.waiting_users.tolist())


@given(logs(), st.randoms())
def test_the_order_of_the_input_does_not_matter(rows: list[Row], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert in_plain_types(prepared(shuffled)) == in_plain_types(prepared(rows))


def test_nothing_gives_nothing() -> None:
    batch = prepared([])
    assert in_plain_types(batch) == Prepared()
    kinds = {
        name: getattr(batch.transitions, name).dtype
        for name in Transitions.__annotations__
        if name != "traits"
    }
    assert kinds == {
        "state": np.int32,
        "action": np.uint8,
        "reward": np.float32,
        "next_state": np.int32,
    }


def successors(*rows: Row, gap: int = GAP, settled_before: int = NEVER) -> list[int]:
    """next_state of what is trained, by id."""
    batch = prepared(list(rows), gap=gap, settled_before=settled_before)
    by_id = zip(batch.transitions.reward.tolist(), batch.transitions.next_state.tolist())  # noqa: B905
    return [next_state for _, next_state in sorted(by_id)]


def row(id_: int, time: int, state: int, user: int = 1) -> Row:
    return Row(id_, user, time, state, reward=float(id_))


def test_a_pause_of_the_session_gap_chains_and_a_longer_one_does_not() -> None:
    assert successors(row(1, 0, 0), row(2, GAP, 1)) == [1, TERMINAL]
    assert successors(row(1, 0, 0), row(2, GAP + 1, 1)) == [TERMINAL, TERMINAL]
    assert successors(row(1, 0, 0), row(2, 0, 1), gap=0) == [1, TERMINAL]


def test_gaps_are_exact_in_microseconds_far_from_zero() -> None:
    now, gap = 830_000_000_000_000, 1_800_000_000
    assert successors(row(1, now, 0), row(2, now + gap, 1), gap=gap) == [1, TERMINAL]
    assert successors(row(1, now, 0), row(2, now + gap + 1, 1), gap=gap) == [TERMINAL, TERMINAL]


def test_the_gap_is_between_neighbours_not_from_the_start() -> None:
    assert successors(*(row(n + 1, n * GAP, n) for n in range(4))) == [1, 2, 3, TERMINAL]


def test_a_changed_personality_ends_the_episode() -> None:
    assert successors(row(1, 0, 0), row(2, 1, N_CONTEXTS)) == [TERMINAL, TERMINAL]
    assert successors(row(1, 0, N_CONTEXTS - 1), row(2, 1, N_CONTEXTS)) == [TERMINAL, TERMINAL]
    assert successors(row(1, 0, N_CONTEXTS), row(2, 1, N_CONTEXTS + 3)) == [7, TERMINAL]


def test_other_people_do_not_break_a_session() -> None:
    assert successors(row(1, 0, 0), row(2, 1, 1, user=2), row(3, 2, 2)) == [2, TERMINAL, TERMINAL]


@pytest.mark.parametrize("stranger", [UNKNOWN_PERSONALITY, OUT_OF_VOCABULARY])
def test_a_state_that_is_not_known_ends_the_episode(stranger: int) -> None:
    assert successors(row(1, 0, 0), row(2, 1, stranger), row(3, 2, 1))[0] == TERMINAL


def test_ties_in_time_follow_the_ids() -> None:
    assert successors(row(7, 3, 0), row(9, 3, 2), row(8, 3, 1)) == [1, 2, TERMINAL]


def test_what_is_too_recent_waits_but_serves_as_the_next_state() -> None:
    rows = [row(1, 0, 0), row(2, 4, 1), row(3, 8, 2)]
    assert successors(*rows, settled_before=4) == [1]
    assert successors(*rows, settled_before=5) == [1, 2]
    batch = prepared(rows, settled_before=5)
    assert (batch.trained_through.tolist(), batch.waiting) == ([2], 1)


def test_what_came_after_something_that_waits_waits_too() -> None:
    late_news = [row(1, 0, 0), row(2, 50, 1), row(3, 1, 2), row(4, 2, 3)]
    batch = prepared(late_news, settled_before=50)
    assert batch.transitions.reward.tolist() == [1.0]
    assert (batch.trained_through.tolist(), batch.waiting) == ([1], 3)


def test_a_person_waits_for_a_profile() -> None:
    rows = [row(1, 0, 0), row(2, 1, UNKNOWN_PERSONALITY), row(3, 2, 1), row(4, 0, 0, user=2)]
    batch = prepared(rows)
    assert in_plain_types(batch).trained_through == {1: 1, 2: 4}
    assert batch.waiting == 2


@pytest.mark.parametrize(("least", "trained"), [(3, 3), (4, 0)])
def test_too_few_interactions_wait_altogether(least: int, trained: int) -> None:
    rows = [row(11, 0, 0), row(12, 1, 1), row(13, 2, OUT_OF_VOCABULARY), row(14, 3, 2)]
    batch = prepared(rows, min_interactions=least)
    assert len(batch.transitions) == trained
    if trained:
        assert in_plain_types(batch).trained_through == {1: 14}
        assert (batch.waiting, batch.out_of_vocabulary) == (0, 1)
    else:
        assert in_plain_types(batch).first_waiting == {1: 11}
        assert (batch.waiting, batch.out_of_vocabulary) == (4, 0)


def test_transitions_are_in_order_of_cell_time_and_id() -> None:
    rows = [
        row(1, 9, N_CONTEXTS + 1, user=1),
        row(2, 3, N_CONTEXTS, user=2),
        row(3, 9, 2, user=3),
        row(5, 9, N_CONTEXTS + 1, user=4),
        row(4, 9, N_CONTEXTS + 3, user=5),
    ]
    assert prepared(rows).transitions.reward.tolist() == [3.0, 2.0, 1.0, 4.0, 5.0]


class Trainer:
    """Incremental runs over a growing log, with watermarks as the server keeps them."""

    def __init__(self) -> None:
        self.watermarks: dict[int, int] = {}
        self.trained: list[int] = []
        self.q = np.zeros((N_STATES, N_ACTIONS), dtype=np.float32)
        self.visits = np.zeros((N_STATES, N_ACTIONS), dtype=np.int32)

    def run(self, log: list[Row], *, through: int, settled_before: int, least: int = 1) -> None:
        rows = [r for r in log if self.watermarks.get(r.user, 0) < r.id <= through]
        batch = prepared(rows, settled_before=settled_before, min_interactions=least)
        for user, mark in in_plain_types(batch).trained_through.items():
            assert self.watermarks.get(user, 0) < mark <= through
            self.watermarks[user] = mark
        self.trained += [int(reward) for reward in batch.transitions.reward]
        settings = Hyperparameters()
        train(self.q, self.visits, batch.transitions, settings, states_per_cell=N_CONTEXTS)


@settings(max_examples=200)
@given(
    logs(sometimes_foreign),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 45), st.integers(1, 4)), max_size=6),
    st.sets(st.integers(1, 500)),
)
def test_each_interaction_is_trained_exactly_once(
    log: list[Row], runs: list[tuple[int, int, int]], unknown_at_first: set[int]
) -> None:
    """Late news, profiles that come later, people with too little: none is lost or doubled."""
    trainer = Trainer()
    at_first = [
        replace(r, state=UNKNOWN_PERSONALITY) if r.id in unknown_at_first else r for r in log
    ]
    for position, (through, settled_before, least) in enumerate(
        sorted(runs, key=lambda run: run[0])
    ):
        seen = at_first if position < len(runs) / 2 else log
        trainer.run(seen, through=through, settled_before=settled_before, least=least)
    trainer.run(log, through=NEVER, settled_before=NEVER)
    assert sorted(trainer.trained) == sorted(r.id for r in log if r.state != OUT_OF_VOCABULARY)
    assert trainer.visits.sum() == len(trainer.trained)

    before = len(trainer.trained)
    trainer.run(log, through=NEVER, settled_before=NEVER)
    assert len(trainer.trained) == before


@settings(max_examples=200)
@given(logs_in_order(sometimes_foreign), st.sets(st.integers(0, 41), max_size=5))
def test_incremental_runs_give_the_table_of_one_rebuild_bit_for_bit(
    log: list[Row], moments: set[int]
) -> None:
    """On a log in order, with settling: a run at a moment sees exactly what happened before it."""
    once = Trainer()
    once.run(log, through=NEVER, settled_before=NEVER)
    pieces = Trainer()
    for moment in sorted(moments):
        arrived = max((r.id for r in log if r.time < moment), default=0)
        pieces.run(log, through=arrived, settled_before=moment - GAP)
    pieces.run(log, through=NEVER, settled_before=NEVER)
    assert pieces.q.tobytes() == once.q.tobytes()
    assert pieces.visits.tobytes() == once.visits.tobytes()


def test_without_settling_a_run_may_cut_a_session_in_two() -> None:
    """What settling is for: the successor has not happened yet when its predecessor is trained."""
    log = [row(1, 0, 0), row(2, 1, 1)]
    first, then = prepared(log[:1]), prepared(log[1:])
    assert first.transitions.next_state.tolist() == [TERMINAL]
    assert then.transitions.next_state.tolist() == [TERMINAL]
    assert successors(*log) == [1, TERMINAL]
    assert prepared(log[:1], settled_before=1 - GAP).waiting == 1
