"""Memory of runs that have their interactions on disk."""

import platform
import sys

import pytest

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
