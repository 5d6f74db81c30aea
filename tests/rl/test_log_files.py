"""Analysis files, as they are read: what is in them, and one clear error for what is not."""

import csv
import gzip
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recparams_rl as rl
from recparams_rl.log_columns import COLUMNS, CellError, LogFileError, parse
from recparams_rl.state import TRAITS, StateSpace
from tests.processes import run
from tests.support import ROOT

ROW = {
    "id": "7",
    "occurred_at": "2026-03-01T12:00:00.000250Z",
    "user": "ada",
    **dict(zip(TRAITS, ("75", "60.5", "40", "80", "30"), strict=True)),
    "content_type": "music",
    "mood": "calm",
    "time_of_day": "evening",
    "energy": "low",
    "diversity": "diverse",
    "novelty": "mixed",
    "like": "true",
    "dislike": "false",
    "complete": "True",
    "skip": "false",
    "share": "false",
    "impression": "false",
    "completion_rate": "1",
    "mood_change": "",
    "engagement": "2",
    "reward": "2.25",
    "propensity": "0.1",
    "arm": "rl",
    "version": "3",
    "source": "learned",
}
NEXT = ROW | {"id": "8", "occurred_at": "2026-03-01 12:05:00+00:00", "mood": "happy"}
UNKNOWN = ROW | dict.fromkeys((*TRAITS, "propensity", "arm", "version", "source"), "")
with_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="needs the extra parquet")


def write(file: Path, *rows: dict[str, str]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(ROW))
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_a_file_becomes_what_estimators_and_learners_take(tmp_path: Path) -> None:
    stranger = UNKNOWN | {"id": "9", "user": 'a\nstranger, "quoted"'}
    log = rl.load_log(write(tmp_path / "a.csv", ROW, NEXT, stranger))
    assert len(log) == 3
    assert log.user_names.tolist() == ["ada", 'a\nstranger, "quoted"']
    assert log.user.tolist() == [0, 0, 1]
    assert log.action.tolist() == [7, 7, 7]
    assert log.reactions.tolist() == [5, 5, 5]
    assert log.version.tolist() == [3, 3, -1]
    assert log.arm.tolist() == ["rl", "rl", ""]
    space = StateSpace()
    learned = log.transitions(space)
    state = log.state(space).tolist()
    assert state[2] == -1
    assert learned.state.tolist() == state[:2]
    assert learned.next_state.tolist() == [state[1], -1]
    assert len(log.transitions(space, session_gap_seconds=60.0)) == 2
    assert log.transitions(space, session_gap_seconds=60.0).next_state.tolist() == [-1, -1]
    seen = log.evaluation_log(space)
    assert seen.state.tolist() == state[:2] and seen.engagement.tolist() == [2.0, 2.0]
    # Fewer words: what the space does not know is not learned.
    assert len(log.transitions(StateSpace(moods=("happy",)))) == 1
    assert log[log.mood == "happy"].id.tolist() == [8]
    # A propensity far below what was explored is not usable.
    tiny = rl.load_log(write(tmp_path / "b.csv", ROW | {"propensity": "0.0001"}))
    assert (
        len(tiny.evaluation_log(space)),
        len(tiny.evaluation_log(space, exploration=0.005)),
    ) == (
        0,
        1,
    )


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
def test_an_empty_log_is_one(tmp_path: Path, end: str) -> None:
    text = write(tmp_path / "a.csv").read_bytes()
    file = tmp_path / f"b{end}"
    # Spreadsheets begin a file with a mark.
    file.write_bytes(gzip.compress(text) if end == ".csv.gz" else b"\xef\xbb\xbf" + text)
    log = rl.load_log(file)
    assert len(log) == len(log.transitions(StateSpace())) == 0
    assert len(log.evaluation_log(StateSpace())) == 0


WRONG = [
    ({"id": "x"}, "id must be a whole number, 0 or more, not 'x'"),
    ({"id": "-1"}, "id must be a whole number, 0 or more, not -1"),
    ({"id": "9" * 30}, f"id must be a whole number, 0 or more, not '{'9' * 30}'"),
    ({"occurred_at": "now"}, "occurred_at must be a time in UTC as in 2026-03-01T12:00:00Z"),
    ({"occurred_at": "2026-03-01T12:00:00"}, "occurred_at must be a time in UTC"),
    ({"occurred_at": "2026-13-01T12:00:00Z"}, "occurred_at must be a time in UTC"),
    ({"user": ""}, "user is missing"),
    ({"openness": "100.5"}, "openness must be a finite number from 0 to 100, not 100.5"),
    ({"mood": "hapy"}, "mood must be one of neutral, happy, .*, not 'hapy'"),
    ({"energy": ""}, "energy is missing"),
    ({"skip": "0"}, "skip must be true or false, not '0'"),
    ({"reward": "inf"}, "reward must be a finite number, not inf"),
    ({"reward": "1e300"}, "reward must be a finite number, not inf"),
    ({"mood_change": "nan"}, "mood_change must be a finite number from -1 to 1, not nan"),
    ({"propensity": "0"}, "propensity must be a finite number from 1.4013e-45 to 1, not 0.0"),
    ({"version": "3.0"}, "version must be a whole number, 0 or more, not '3.0'"),
    ({"arm": "none"}, "arm must be one of rl, previous, rule_based, not 'none'"),
    ({"id": "8"}, "id 8 is there before"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_wrong_value_is_named_by_line_and_column(
    tmp_path: Path, change: dict[str, str], said: str
) -> None:
    two_lines = NEXT | {"user": "two\nlines"}
    file = write(tmp_path / "a.csv", two_lines, ROW, ROW | {"id": "9"} | change)
    with pytest.raises(LogFileError, match=f"a.csv, line 5: {said}"):
        rl.load_log(file)


def break_text(change: Callable[[str], str]) -> Callable[[Path], None]:
    return lambda file: file.write_text(change(file.read_text()), encoding="latin-1") and None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (break_text(lambda _: ""), "line 1: there is no column id, occurred_at, user"),
        (break_text(lambda text: text.replace("reward", "rewards")), "no column reward$"),
        (break_text(lambda text: text + "1,2\n"), "line 3: 2 values, not 28"),
        (break_text(lambda text: text.replace("ada", "\u00e4da")), "after line 0: .*can't decode"),
        (break_text(lambda text: text.replace("ada", '"a"da')), "line 2: ',' expected"),
    ],
)
def test_what_is_no_table_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    file = write(tmp_path / "a.csv", ROW)
    spoil(file)
    with pytest.raises(LogFileError, match=said):
        rl.load_log(file)


def test_a_name_says_what_a_file_is(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match=r"must end in \.csv, \.csv\.gz, \.parquet"):
        rl.load_log(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        rl.load_log(tmp_path / "a.csv")
    packed = tmp_path / "a.csv.gz"
    whole = gzip.compress(write(tmp_path / "a.csv", *[ROW] * 50).read_bytes())
    for broken in (b"no gzip at all", whole[:-20]):
        packed.write_bytes(broken)
        with pytest.raises(LogFileError, match=r"a\.csv\.gz, after line "):
            rl.load_log(packed)


@with_pyarrow
def test_parquet_is_checked_as_well(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv as arrow_csv
    import pyarrow.parquet as pq

    file = tmp_path / "a.parquet"
    strings = arrow_csv.ConvertOptions(strings_can_be_null=True)
    table = arrow_csv.read_csv(
        write(tmp_path / "a.csv", ROW, NEXT, UNKNOWN | {"id": "9"}), convert_options=strings
    )

    def put(name: str, values: list[Any], kind: Any = None) -> None:
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, pa.array(values, kind)), file)

    put("user", ["a", "b", "a"])
    log = rl.load_log(str(file))
    plain = rl.load_log(tmp_path / "a.csv")
    assert log.user.tolist() == [0, 1, 0]
    for name in ("occurred_at", "traits", "reward", "version", "arm", "mood", "propensity"):
        one, other = getattr(log, name), getattr(plain, name)
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name
    for name, values, said in (
        ("mood", ["calm", "hapy", "calm"], "row 2: mood must be one of neutral, .*not 'hapy'"),
        ("reward", [1.0, 2.0, None], "row 3: reward is missing"),
        ("user", ["a", "", "b"], "row 2: user is missing"),
        ("reward", ["a", "b", "c"], "reward is string, not float"),
        ("version", [1, -2, 3], "row 2: version must be a whole number, 0 or more, not -2"),
    ):
        put(name, values)
        with pytest.raises(LogFileError, match=rf"a\.parquet(,|:) {said}"):
            rl.load_log(file)
    pq.write_table(table.drop_columns(["propensity"]), file)
    with pytest.raises(LogFileError, match="there is no column propensity"):
        rl.load_log(file)
    file.write_bytes(b"no Parquet at all")
    with pytest.raises(LogFileError, match=r"a\.parquet: "):
        rl.load_log(file)
    pq.write_table(table.slice(0, 0), file)
    assert len(rl.load_log(file)) == 0


def test_without_pyarrow_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'recparams\[parquet\]'"):
        rl.load_log(tmp_path / "a.parquet")


def test_the_core_is_imported_as_lightly_as_before() -> None:
    """Also by whoever wants no file: nothing comes with the package itself."""
    code = (
        "import sys, recparams_rl\n"
        "assert 'numpy' not in sys.modules\n"
        "print(recparams_rl.load_log.__name__)"
    )
    done = run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, "load_log\n"), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        rl.other  # noqa: B018


def test_the_document_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/analysis.md").read_text()
    named = re.findall(r"^\| (`.*?) \|", text.split("## Columns")[1], re.MULTILINE)
    listed = [name for cell in named for name in re.findall("`([a-z_]+)`", cell)]
    assert set(listed) <= {column.name for column in COLUMNS}
    missing = [column.name for column in COLUMNS if column.name not in listed]
    assert missing == ["conscientiousness", "extraversion", "agreeableness"]
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["log"]) > 1000


PROPENSITY = next(column for column in COLUMNS if column.name == "propensity")


@given(st.lists(st.floats(0, 1, width=32, exclude_min=True) | st.none(), max_size=5))
def test_numbers_are_read_as_they_were_written(values: list[float | None]) -> None:
    texts = ["" if value is None else str(np.float32(value)) for value in values]
    expected = np.array(values, dtype=np.float32)
    assert np.array_equal(parse(PROPENSITY, texts), expected, equal_nan=True)


@given(st.sampled_from(COLUMNS), st.lists(st.text(max_size=8), max_size=4))
def test_any_text_is_a_value_or_refused(column: Any, texts: list[str]) -> None:
    try:
        values = parse(column, texts)
    except CellError as failure:
        assert 0 <= failure.row < len(texts)
        assert str(failure).startswith(column.name)
    else:
        assert values.shape == (len(texts),)
