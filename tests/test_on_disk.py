"""Runs that have their interactions on disk: memory, and what they hold out."""

import platform
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recparams_server.jobs.training import holdout, on_disk
from tests.processes import run
from tests.support import ROOT

KEPT = """
import numpy as np, psutil, sys
from recparams_server.jobs.training.on_disk import give_back_large_arrays

if sys.argv[1] == "given back":
    give_back_large_arrays()
# From now on glibc takes 30 MB for small, if it is let.
del (large := [np.ones(30_000_000, dtype=np.uint8)])[:]
arrays, between = [], []
for _ in range(50):
    arrays.append(np.ones(2_000_000, dtype=np.uint8))
    between.append(np.ones(100_000, dtype=np.uint8))
full = psutil.Process().memory_info().rss
arrays.clear()
print((full - psutil.Process().memory_info().rss) // 1_000_000)
"""


def freed(how: str) -> int:
    done = run(sys.executable, "-c", KEPT, how, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_arrays_are_given_back_at_once() -> None:
    assert freed("given back") > 90
    assert freed("kept") < 50


@given(
    parts=st.lists(st.lists(st.integers(-5, 5), max_size=6), min_size=1, max_size=20),
    most=st.integers(1, 8),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_the_latest_of_all_parts_are_held_out(
    parts: list[list[int]], most: int, share: float
) -> None:
    time = np.array([one for part in parts for one in part], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holdout, "MOST_HELD_OUT", most)
        patch.setattr(on_disk, "MOST_HELD_OUT", most)
        latest = on_disk._Latest(share)
        for ids in np.split(np.arange(len(time)), np.cumsum([len(part) for part in parts])):
            rows = {"time": time[ids], "id": ids}
            latest.add(rows, lambda places, ids=ids: {"beside": -ids[places]})
        split, found = latest.split()
        expected = holdout.split_time(time, share)
    assert (split, latest.n) == (expected, len(time))
    wanted = np.flatnonzero(holdout.held_out(time, expected)).tolist()
    assert sorted(found["id"].tolist()) == wanted
    assert found["time"].tolist() == time[found["id"]].tolist()
    assert (found["beside"] == -found["id"]).all()
