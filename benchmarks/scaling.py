"""Training on more workers: what two do, measured, and a model of what more would do.

`python -m benchmarks.scaling --into docs` measures on this machine and writes scale.md's figures
and picture. The model has no free parameter: each cost was measured by itself.
"""

import asyncio
import json
import os
import statistics
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import click
import numpy as np

from benchmarks.database import DAYS, Trained, make_database, postgres, psql_copy, reset, train
from benchmarks.report import Table
from benchmarks.scaling_model import DATABASE_CORES, SIZES, WORKERS, Costs, draw, limits
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import NO_CELL, StateSpace
from recparams_server.jobs.requests import RAY, RunRequest
from recparams_server.jobs.training import exports
from recparams_server.jobs.training.reading import Reading, read
from recparams_server.jobs.training.shards import (
    Part,
    Shard,
    interactions_by_cell,
    read_shard,
    shard_condition,
    shard_rows,
    split_cells,
    write_shard_rows,
)
from recparams_server.settings import Settings
from recparams_server.store import training
from recparams_simulation.people.population import draw_population

FEW = 2_000
"""Interactions that cost nothing themselves."""


def measure(rows: int, rounds: int) -> tuple[Costs, dict[str, list[Trained]]]:
    """Every cost by itself, and whole runs: in one process, and on Ray with one and two shards."""
    runs: dict[str, list[Trained]] = {"one process": [], _on_ray(1): [], _on_ray(2): []}
    with postgres() as server, TemporaryDirectory() as scratch:
        url = make_database(server, "scaling", rows)
        folder = Path(scratch)
        for _ in range(rounds):
            runs["one process"].append(train(url, folder))
            for shards in (1, 2):
                runs[_on_ray(shards)].append(train(url, folder, engine=RAY, ray_shards=shards))
        reset(url)
        few = make_database(server, "few", FEW)
        starting = [
            train(few, folder, engine=RAY, ray_shards=2).seconds - train(few, folder).seconds
            for _ in range(rounds)
        ]
        chaining = statistics.median(run.stages["preparing"] for run in runs["one process"])
        copying = statistics.median(psql_copy(url, _everybody()) for _ in range(rounds))
        by_itself = asyncio.run(_by_itself(url, chaining))
        reset(url)
    one = runs["one process"]
    stages = {
        name: statistics.median(run.stages.get(name, 0.0) for run in one) for name in one[0].stages
    }
    whole = statistics.median(run.seconds for run in one)
    learning = stages["updating"] + stages.get("folding_in", 0.0)
    people = rows / 50
    writing = by_itself["per_user"] * people
    fixed = whole - stages["reading"] - stages["preparing"] - learning - writing
    return (
        Costs(
            copy=copying / rows,
            scan=by_itself["scan"] / rows,
            weigh=by_itself["weigh"] / rows,
            receive=by_itself["receive"] / rows,
            receive_file=by_itself["receive_file"] / rows,
            chain=stages["preparing"] / rows,
            update=learning / rows,
            keep=by_itself["keep"] / rows,
            merge=2 * by_itself["merge"],
            fixed=fixed,
            start=statistics.median(starting),
            per_user=by_itself["per_user"],
            people=people / rows,
            largest_cell=by_itself["largest_cell"],
        ),
        runs,
    )


async def _by_itself(url: str, chaining: float) -> dict[str, float]:
    """Seconds of what whole runs do not tell apart; `chaining` are those of a whole run."""
    settings = Settings(database_url=url)
    space = settings.space()
    reading = _reading(rebuild=True)
    db = await asyncpg.connect(url)
    began = time.perf_counter()
    weights = await interactions_by_cell(db, space, reading)
    weighing = time.perf_counter() - began

    nobody = Shard(space.n_cells + 1, space.n_cells + 2)
    began = time.perf_counter()
    await read(db, settings, reading, lambda _: None, shard_condition(space, reading, nobody))
    scanning = time.perf_counter() - began

    everything = Shard(NO_CELL, space.n_cells)
    began = time.process_time()
    part, _ = await read_shard(db, settings, reading, everything)
    # Chaining is in it too, which is counted by itself.
    receiving = time.process_time() - began - chaining

    with TemporaryDirectory() as scratch:
        made = await exports.export(
            settings,
            Path(scratch) / "export",
            days_back=DAYS + 2,
            rebuild=True,
            shards=1,
            on_file=lambda *_: None,
        )
        file = exports.file_of(Path(scratch) / "export", 0)
        began = time.process_time()
        exports.read_file(settings, reading, made.shards[0], file)
        receive_file = time.process_time() - began - chaining

    people = await db.fetch("SELECT user_key FROM users LIMIT 20000")
    keys = np.array([row["user_key"] for row in people])
    began = time.perf_counter()
    await training.set_watermarks(db, keys, np.ones(len(keys), dtype=np.int64))
    per_user = (time.perf_counter() - began) / len(keys)
    await db.close()
    return {
        "weigh": weighing,
        "scan": scanning,
        "receive": receiving,
        "receive_file": receive_file,
        "per_user": per_user,
        **await asyncio.to_thread(_through_ray, space, weights, part),
        "largest_cell": _largest_cell(space),
    }


def _on_ray(workers: int) -> str:
    return f"Ray, {workers} worker{'s' * (workers > 1)}"


def _reading(*, rebuild: bool) -> Reading:
    """All there is."""
    request = RunRequest(
        rebuild=rebuild,
        days_back=None,
        min_interactions_per_user=1,
        hyperparameters=Hyperparameters(settling_seconds=0),
        as_of=datetime.now(UTC),
        activate=False,
        engine=RAY,
    )
    return Reading(request, datetime(2000, 1, 1, tzinfo=UTC), 2**62, traits=False)


def _everybody() -> str:
    """What a worker's query has besides, where its shard is all cells."""
    space = StateSpace()
    return shard_condition(space, _reading(rebuild=False), Shard(NO_CELL, space.n_cells))


def _through_ray(space: StateSpace, weights: dict[int, int], part: Part) -> dict[str, float]:
    """Seconds to hand a whole table to Ray's store and back, and to keep a part there."""
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    arrays = {
        "q": np.ones((space.n_states, 27), dtype=np.float32),
        "visits": np.ones((space.n_states, 27), dtype=np.int32),
    }
    shards = split_cells(weights, space.n_cells, 2)
    for _ in range(2):  # The first time warms up.
        began = time.perf_counter()
        for shard in shards:
            sent = ray.get(ray.put(shard_rows(space, arrays, shard)))
            write_shard_rows(space, arrays, shard, ray.get(ray.put(sent)))
        merging = time.perf_counter() - began
    began = time.perf_counter()
    ray.get(ray.put(part))
    keeping = time.perf_counter() - began
    ray.shutdown()
    return {"merge": merging, "keep": keeping}


def _largest_cell(space: StateSpace) -> float:
    """Share of people who are in the cell that has most, of a million with real correlations."""
    traits = draw_population(np.random.default_rng(1), 1_000_000).traits
    counts = np.bincount(space.cells(traits))
    return float(counts.max() / counts.sum())


def tables(costs: Costs, runs: dict[str, list[Trained]], rows: int) -> str:
    """What was measured, what the model says of it, and what it says of more."""
    whole = {name: statistics.median(one.seconds for one in found) for name, found in runs.items()}

    def stage(name: str, which: str) -> float:
        return statistics.median(one.stages.get(which, 0.0) for one in runs[name])

    cores = len(os.sched_getaffinity(0))
    modelled = {
        _on_ray(w): sum(limits(costs, rows, w, cores, shared_cores=cores).values()) for w in (1, 2)
    }
    measured = Table(
        (f"{rows:,} interactions", "measured, s", "modelled, s", "reading", "chaining", "learning"),
        [
            (
                name,
                f"{whole[name]:.1f}",
                f"{modelled[name]:.1f}" if name in modelled else "",
                f"{stage(name, 'reading'):.1f}",
                f"{stage(name, 'preparing'):.1f}",
                f"{stage(name, 'updating') + stage(name, 'folding_in'):.1f}",
            )
            for name in runs
        ],
    )
    by_row = {"copy", "scan", "weigh", "receive", "receive_file", "chain", "update", "keep"}
    each = Table(
        ("cost, measured", ""),
        [
            (name, f"{1e9 * value:,.0f} ns a row" if name in by_row else f"{value:.3g}")
            for name, value in asdict(costs).items()
        ],
    )
    model = [
        Table(
            (f"hours, modelled: {what}", *(f"{w} workers" for w in WORKERS)),
            [
                (
                    f"10^{int(np.log10(n))}",
                    *(_cell(limits(costs, n, w, DATABASE_CORES, files=files)) for w in WORKERS),
                )
                for n in SIZES
            ],
        )
        for what, files in (("from Postgres", False), ("from files", True))
    ]
    return "\n\n".join(one.markdown() for one in (measured, each, *model))


def _cell(found: dict[str, float]) -> str:
    binding = max(found, key=lambda name: found[name])
    return f"{sum(found.values()) / 3600:.3g}, {binding}"


@click.command()
@click.option("--rows", default=4_000_000, type=click.IntRange(1000), help="Interactions.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Runs of each.")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(rows: int, rounds: int, into: Path) -> None:
    """Measure what the model of training on more workers needs, and draw it."""
    costs, runs = measure(rows, rounds)
    draw(costs, into / "scale.png")
    text = tables(costs, runs, rows)
    click.echo(text)
    (into / "scale.json").write_text(json.dumps(asdict(costs), indent=1) + "\n")


if __name__ == "__main__":
    main()
