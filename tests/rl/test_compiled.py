"""Functions that numba compiles at their first call."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from recparams_rl.compiled import Compiled
from tests.processes import run
from tests.support import ROOT


@Compiled
def total(values: np.ndarray) -> float:
    """Sums."""
    found = 0.0
    for value in values:
        found += twice(value)
    return found


@Compiled
def twice(value: float) -> float:
    return 2.0 * value


def test_compiled_functions_call_each_other_from_any_thread() -> None:
    first = total
    assert (first.__name__, first.__doc__) == ("total", "Sums.")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(first, [np.arange(3.0)] * 8))
    assert found == [6.0] * 8
    assert first(np.arange(4.0)) == total(np.arange(4.0)) == 12.0


def test_nothing_is_compiled_by_an_import() -> None:
    code = (
        "import sys, recparams_server.app, recparams_server.cli.serve\n"
        "import recparams_server.jobs.__main__, recparams_rl.learners.registry\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).returncode == 0
