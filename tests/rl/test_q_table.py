"""q_table.json: the round trip, the seed's bare form, and files that are refused."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recparams_rl.action import ACTIONS, N_ACTIONS, Action
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.q_table import ASSUMED_VISITS, FORMAT, QTable, dump, load
from recparams_rl.state import Context, StateSpace
from tests.rl.test_state import names

SPACE = StateSpace()
STATE = "(3, 3, 2, 4, 1, 'music', 'calm', 'evening')"
ACTION = "('low', 'diverse', 'exploratory')"
AT = (
    SPACE.index((75, 60, 40, 80, 30), Context("music", "calm", "evening")),
    Action("low", "diverse", "exploratory").index,
)

small_spaces = st.builds(
    StateSpace, bins=st.integers(1, 2), content_types=names, moods=names, times_of_day=names
)
values = st.floats(-(2.0**100), 2.0**100, width=32)


@st.composite
def tables(draw: st.DrawFn) -> QTable:
    space = draw(small_spaces)
    q = np.zeros((space.n_states, N_ACTIONS), dtype=np.float32)
    visits = np.zeros((space.n_states, N_ACTIONS), dtype=np.int32)
    rewards = np.zeros_like(q)
    for _ in range(draw(st.integers(0, 12))):
        at = draw(st.integers(0, space.n_states - 1)), draw(st.integers(0, N_ACTIONS - 1))
        q[at], visits[at] = draw(values), draw(st.integers(1, 2**31 - 1))
        rewards[at] = draw(values)
    return QTable(space, q, visits, rewards, {"learning_rate": draw(st.floats(0, 1))})


@settings(max_examples=60)
@given(tables())
def test_a_table_survives_the_file_bit_for_bit(table: QTable) -> None:
    text = "".join(dump(table))
    for form in (text, text.encode()):
        back = load(form, SPACE)
        assert back.space == table.space
        assert back.hyperparameters == table.hyperparameters
        assert (back.q.dtype, back.visits.dtype) == (np.float32, np.int32)
        assert back.q.tobytes() == table.q.tobytes()
        assert back.visits.tobytes() == table.visits.tobytes()
        assert back.rewards.tobytes() == table.rewards.tobytes()
    assert "".join(dump(back)) == text


def test_the_file_has_the_seeds_form() -> None:
    q = np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.float32)
    visits = np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.int32)
    q[AT], visits[AT] = 0.5, 3
    q[0, 0], visits[0, 0] = 0.0, 1  # visited, and worth nothing
    q[1, 1] = 9.0  # not visited
    table = QTable(SPACE, q, visits, q / 2, {"learning_rate": 0.1})
    written = json.loads("".join(dump(table)))
    worthless = "(0, 0, 0, 0, 0, 'music', 'neutral', 'morning')"
    first = "('low', 'focused', 'familiar')"
    assert written == {
        "format": FORMAT,
        "space": SPACE.to_dict(),
        "hyperparameters": {"learning_rate": 0.1},
        "q_table": {worthless: {first: 0.0}, STATE: {ACTION: 0.5}},
        "visit_counts": {worthless: {first: 1}, STATE: {ACTION: 3}},
        "rewards": {worthless: {first: 0.0}, STATE: {ACTION: 0.25}},
    }


def test_an_empty_table_is_a_file() -> None:
    nothing = QTable(
        SPACE,
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.float32),
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.int32),
        np.zeros((SPACE.n_states, N_ACTIONS), dtype=np.float32),
        {},
    )
    text = "".join(dump(nothing))
    assert json.loads(text)["q_table"] == {}
    assert not load(text, SPACE).visits.any()


def test_a_bare_file_of_states_is_taken_as_settled_in_the_given_space() -> None:
    other = "(0,0,0, 0,0,\"video\",'sad','night')"  # however its author spelled it
    bare = {STATE: {ACTION: 0.5, "('high', 'focused', 'mixed')": -2}, other: {ACTION: 1e-3}}
    table = load(json.dumps(bare), SPACE)
    there = SPACE.index((0,) * 5, Context("video", "sad", "night"))
    assert table.space == SPACE and table.hyperparameters == {}
    assert table.q[AT] == 0.5
    assert table.rewards.tobytes() == table.q.tobytes()
    assert table.q[AT[0], Action("high", "focused", "mixed").index] == -2.0
    assert table.q[there, AT[1]] == np.float32(1e-3)
    assert np.count_nonzero(table.q) == 3
    assert np.array_equal(table.visits > 0, table.q != 0)
    assert set(np.unique(table.visits).tolist()) == {0, ASSUMED_VISITS}


def test_an_empty_object_is_no_model() -> None:
    with pytest.raises(ValueError, match="an object without states is no model"):
        load("{}", SPACE)


@pytest.mark.parametrize("spell", [repr, json.dumps, lambda name: f'"{name}"'])
def test_names_may_be_in_either_quotes(spell: Callable[[str], str]) -> None:
    state = f"(3, 3, 2, 4, 1, {spell('music')},{spell('calm')},  {spell('evening')})"
    action = f"({spell('low')},{spell('diverse')}, {spell('exploratory')} )"
    for key in (state, STATE):
        for name in (action, ACTION):
            assert load(json.dumps({key: {name: 0.5}}), SPACE).q[AT] == 0.5


def test_parameters_of_any_algorithm_are_read() -> None:
    """An exported table has those of its own."""
    for algorithm in LEARNERS:
        given = settings_of(algorithm, {}).to_dict()
        file = {"q_table": {STATE: {ACTION: 1.0}}, "hyperparameters": given}
        assert load(json.dumps(file), SPACE).hyperparameters == given


def test_a_bare_file_is_read_in_bins_of_its_own_space() -> None:
    space = StateSpace(bins=3)
    with pytest.raises(ValueError, match="no such state"):
        load(json.dumps({STATE: {ACTION: 1.0}}), space)
    assert load(json.dumps({STATE.replace("4", "2").replace("3", "1"): {}}), space).space == space


def test_every_action_is_read_where_it_was_written() -> None:
    row = {str((a.energy, a.diversity, a.novelty)): float(a.index + 1) for a in ACTIONS}
    table = load(json.dumps({STATE: row}), SPACE)
    assert table.q[AT[0]].tolist() == [float(n) for n in range(1, 28)]


def test_counts_say_what_was_visited() -> None:
    file = {
        "q_table": {STATE: {ACTION: 0.5, "('low', 'diverse', 'mixed')": 4.0}},
        "visit_counts": {STATE: {ACTION: 7.0}},
    }
    table = load(json.dumps(file), SPACE)
    assert (table.q[AT], table.visits[AT]) == (0.5, 7)
    assert np.count_nonzero(table.q) == np.count_nonzero(table.visits) == 1


HUGE = 10**400
LONG = "9" * 5000
"""More digits than Python makes a number of."""
NUMPY_STATE = STATE.replace("(3,", "(np.int64(3),")
NUMPY_ACTION = ACTION.replace("'low'", "np.str_('low')")
IN_STATE = f"q_table[{STATE!r}]"
IN_PAIR = f"{IN_STATE}[{ACTION!r}]"
COUNT_IN_PAIR = IN_PAIR.replace("q_table", "visit_counts")


def with_counts(count: Any) -> dict[str, Any]:
    return {"q_table": {STATE: {ACTION: 1.0}}, "visit_counts": {STATE: {ACTION: count}}}


def with_space(**change: Any) -> dict[str, Any]:
    return {"q_table": {}, "space": {**SPACE.to_dict(), **change}}


def with_hyperparameters(**given: Any) -> dict[str, Any]:
    return {"q_table": {}, "hyperparameters": given}


@pytest.mark.parametrize(
    ("content", "names_it"),
    [
        # not a file of states at all
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        (b"\xff\xfe\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object of states"),
        ("null", "not an object of states"),
        ({"q_table": []}, "q_table: not an object of states"),
        ({"q_table": None}, "q_table: not an object of states"),
        ({"q_table": {}, "visit_counts": [1]}, "visit_counts: not an object of states"),
        ({"q_table": {}, "format": "somebody.else/7"}, "format is 'somebody.else/7'"),
        ({"q_table": {}, "format": None}, "format is None"),
        ({"q_table": {}, "hyperparameters": [1]}, "hyperparameters: not an object"),
        ({"q_table": {}, "qtable": {}}, "'qtable': no such field; a file has format, algorithm, "),
        ({"q_table": {}, "algorithm": "dqn"}, "algorithm: must be 'q_learning', not 'dqn'"),
        ({"q_table": {}, "algorithm": None}, "algorithm: must be 'q_learning', not None"),
        # the same key twice, wherever it is
        ('{"q_table": {}, "q_table": {}}', "q_table: this key is there twice"),
        ('{"format": {"a": 1, "a": 2}, "format": 1}', "format: this key is there twice"),
        (f'{{"{STATE}": {{}}, "{STATE}": {{}}}}', f"{STATE}: this key is there twice"),
        (
            f'{{"q_table": {{"{STATE}": {{"{ACTION}": 1, "{ACTION}": 2}}}}}}',
            f"{IN_PAIR}: this key is there twice",
        ),
        (
            '{"q_table": {}, "hyperparameters": {"learning_rate": 1, "learning_rate": 0.1}}',
            "hyperparameters['learning_rate']: this key is there twice",
        ),
        (
            '{"q_table": {}, "space": {"moods": [{}, {"a": 1, "a": 1}]}}',
            "space['moods'][1]['a']: this key is there twice",
        ),
        # its hyperparameters
        *(
            (
                with_hyperparameters(learning_rate=value),
                f"hyperparameters['learning_rate']: must be a number, not {said}",
            )
            for value, said in (
                (None, "None"),
                (True, "True"),
                ("0.1", "'0.1'"),
                ([0.1], "a list"),
                ({}, "an object"),
            )
        ),
        (
            with_hyperparameters(exploration_schedule=1),
            "hyperparameters['exploration_schedule']: must be a text, not 1",
        ),
        (
            with_hyperparameters(settling_seconds=False),
            "hyperparameters['settling_seconds']: must be a number, not False",
        ),
        (
            with_hyperparameters(learningrate=0.1),
            "hyperparameters['learningrate']: no algorithm has such a parameter",
        ),
        (
            with_hyperparameters(algorithm="dqn"),
            "hyperparameters['algorithm']: no algorithm has such a parameter",
        ),
        # its space
        (with_space(bins=0), "space: bins"),
        (with_space(bins="5"), "space: bins"),
        ('{"q_table": {}, "space": {"bins": 1e999}}', "space: bins"),
        (with_space(moods=[]), "space: moods"),
        (with_space(moods=None), "space: moods"),
        (with_space(moods="calm"), "space: moods"),
        (with_space(moods=[["calm"]]), "space: moods"),
        (with_space(bins=True), "space: bins"),
        (with_space(mods=["calm"]), "space['mods']: no such field; a space has bins, "),
        (f'{{"q_table": {{}}, "space": {{"bins": {LONG}}}}}', "space: bins"),
        ({"q_table": {}, "space": {}}, "space: 'bins' is missing"),
        ({"q_table": {}, "space": []}, "space: must be an object, not a list"),
        ({"q_table": {}, "space": None}, "space: must be an object, not None"),
        # its states
        *(
            ({STATE: {}, key: {ACTION: 1.0}}, f"q_table[{key!r}]: no such state")
            for key in (
                "",
                "nowhere",
                "()",
                "7",
                "(" * 500,
                "'abcdefgh'",
                "__import__('os').getcwd()",
                "(3, 3, 2, 4, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, 1, 1, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, 5, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, -1, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, 1.0, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, True, 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, '1', 'music', 'calm', 'evening')",
                "(3, 3, 2, 4, 1, 'book', 'calm', 'evening')",
                "(3, 3, 2, 4, 1, 'music', 'bored', 'evening')",
                "(3, 3, 2, 4, 1, 'music', 'calm', 'noon')",
                "(3, 3, 2, 4, 1, 'music', 'calm', ['evening'])",
                "(3, 3, 2, 4, 1, 'music', 'calm', 'evening\x00')",
            )
        ),
        (
            {STATE: {ACTION: 1.0}, STATE.replace(" ", ""): {ACTION: 2.0}},
            f"q_table[{STATE.replace(' ', '')!r}]: this state is there twice",
        ),
        (
            {NUMPY_STATE: {ACTION: 1.0}},
            f"q_table[{NUMPY_STATE!r}]: no such state: write plain numbers and names instead of "
            "NumPy's, as in (0, 0, 0, 0, 0, 'music', 'neutral', 'morning')",
        ),
        # their actions
        (
            {STATE: {NUMPY_ACTION: 1.0}},
            f"{IN_STATE}[{NUMPY_ACTION!r}]: no such action: write plain numbers and names instead "
            "of NumPy's, as in ('low', 'focused', 'familiar')",
        ),
        (
            {STATE: {ACTION: 1.0, ACTION.replace("'", '"'): 2.0}},
            f"{IN_STATE}[{ACTION.replace(chr(39), chr(34))!r}]: this action is there twice",
        ),
        *(
            ({STATE: {key: 1.0}}, f"{IN_STATE}[{key!r}]: no such action")
            for key in ("('low', ['diverse'], 'exploratory')", "(" * 500, "0", "{}", "low")
        ),
        ({STATE: [1.0]}, f"{IN_STATE}: not an object of actions"),
        ({STATE: 1.0}, f"{IN_STATE}: not an object of actions"),
        ({STATE: {"low": 1.0}}, f"{IN_STATE}['low']: no such action"),
        ({STATE: {ACTION: 1.0, "('low', 'low', 'low')": 1.0}}, "['(\\'low\\', "),
        # their values
        *(
            ({STATE: {ACTION: value}}, f"{IN_PAIR}: not a finite number")
            for value in (None, "1", True, [1.0], {}, HUGE, -HUGE, 1e39, -1e39)
        ),
        (f'{{"{STATE}": {{"{ACTION}": {LONG}}}}}', f"{IN_PAIR}: not a finite number: inf"),
        (f'{{"{STATE}": {{"{ACTION}": -{LONG}}}}}', f"{IN_PAIR}: not a finite number: -inf"),
        (f'{{"{STATE}": {{"{ACTION}": NaN}}}}', f"{IN_PAIR}: not a finite number"),
        (f'{{"{STATE}": {{"{ACTION}": 1e999}}}}', f"{IN_PAIR}: not a finite number"),
        (f'{{"{STATE}": {{"{ACTION}": -Infinity}}}}', f"{IN_PAIR}: not a finite number"),
        # and their counts
        *(
            (with_counts(count), f"{COUNT_IN_PAIR}: a visit count must be a whole number")
            for count in (-1, 0.5, 2**31)
        ),
        (json.dumps(with_counts(0)).replace(": 0", f": {LONG}"), f"{COUNT_IN_PAIR}: not a finite"),
        *((with_counts(count), f"{COUNT_IN_PAIR}: not a finite") for count in (None, "3", HUGE)),
    ],
)
def test_a_malformed_file_is_refused_by_name(content: Any, names_it: str) -> None:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    if names_it.startswith("['("):
        names_it = f"{IN_STATE}[\"('low', 'low', 'low')\"]: no such action"
    with pytest.raises(ValueError, match=re.escape(names_it)):
        load(text, SPACE)


@settings(max_examples=200)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["q_table", "visit_counts", "space", "format", STATE, ACTION, "x"]),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=12,
    )
)
def test_any_json_is_a_table_or_a_value_error(content: Any) -> None:
    small = StateSpace(5, ("music",), ("calm",), ("evening",))
    try:
        table = load(json.dumps(content), small)
    except ValueError:
        return
    assert np.isfinite(table.q).all() and (table.visits >= 0).all()
