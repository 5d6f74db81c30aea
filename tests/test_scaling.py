"""The models of docs/scale.md, and short runs of what they are made of."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.fleet import RATE, simulate
from benchmarks.scaling import main
from benchmarks.scaling_model import Costs, limits
from tests.support import ROOT

COSTS = Costs(**json.loads((ROOT / "docs" / "scale.json").read_text()))


def seconds(costs: Costs, rows: float, workers: int, **options: bool) -> float:
    return sum(limits(costs, rows, workers, 8, **options).values())


def test_the_model_names_what_binds() -> None:
    def binding(costs: Costs, workers: int, **options: bool) -> str:
        found = limits(costs, 1e10, workers, 8, **options)
        return max(found, key=lambda name: found[name])

    assert binding(COSTS, 1) == binding(COSTS, 64) == "database"
    assert binding(COSTS, 1, files=True) == "workers"
    assert binding(COSTS, 64, files=True) == "writing"
    crowded = replace(COSTS, largest_cell=0.5)
    assert binding(crowded, 64, files=True) == "largest cell"
    assert seconds(crowded, 1e10, 64, files=True) == seconds(crowded, 1e10, 2, files=True)


def test_more_workers_help_until_postgres_is_busy() -> None:
    from_postgres = [seconds(COSTS, 1e9, workers) for workers in (1, 2, 4, 8, 16, 64)]
    assert from_postgres[:4] == sorted(from_postgres[:4], reverse=True)
    assert from_postgres[3:] == sorted(from_postgres[3:])
    from_files = [seconds(COSTS, 1e9, workers, files=True) for workers in (1, 2, 4, 8, 16, 64)]
    assert from_files == sorted(from_files, reverse=True)


def test_replicas_wait_as_queueing_theory_says() -> None:
    """The mean of M/D/1: service * (1 + busy / (2 * (1 - busy))) (Pollaczek 1930)."""
    service = 200e-6
    busy, p50, p99 = simulate(40, service)
    assert busy == pytest.approx(RATE * service / 40) == 0.5
    assert service < p50 < service * (1 + 0.5) < p99 < 6 * service
    fuller = simulate(22, service)
    assert fuller[1] > p50 and fuller[2] > p99


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
@pytest.mark.filterwarnings("ignore")
def test_the_costs_are_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--rows", "4000", "--rounds", "1", "--into", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert set(json.loads((tmp_path / "scale.json").read_text())) == set(vars(COSTS))
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
