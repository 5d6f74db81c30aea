"""A model of training on more workers: what each stage costs, and which of them binds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WORKERS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (10**7, 10**8, 10**9, 10**10)
DATABASE_CORES = 8
"""Of the Postgres of the model."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True)
class Costs:
    """Seconds, measured on one core each; those by row are divided by rows.

    Attributes:
        copy: Postgres sends a row.
        scan: Postgres passes over a row for a shard that it is not of.
        weigh: Postgres counts a row by its cell.
        receive: a worker makes arrays of a row that Postgres sends.
        receive_file: a worker makes arrays of a row of a Parquet file.
        chain: a worker chains and sorts a row.
        update: a worker learns a row.
        keep: a worker hands a row to Ray's store and gets it back.
        merge: the driver hands out the table and puts it together again, both times.
        fixed: starting, connecting, smoothing, evaluating, writing.
        start: Ray, its workers, and what they import, on top of that.
        per_user: writing how far a person is trained.
        people: people an interaction.
        largest_cell: share of the interactions that the largest cell has.
    """

    copy: float
    scan: float
    weigh: float
    receive: float
    receive_file: float
    chain: float
    update: float
    keep: float
    merge: float
    fixed: float
    start: float
    per_user: float
    people: float
    largest_cell: float


def limits(
    costs: Costs,
    rows: float,
    workers: int,
    database_cores: int,
    *,
    files: bool = False,
    shared_cores: int | None = None,
) -> dict[str, float]:
    """Seconds of a run by what they are spent on; reading counts once, by what binds it.

    Args:
        costs: as measured.
        rows: interactions.
        workers: a core each.
        database_cores: of Postgres.
        files: whether Parquet files are read, from storage that keeps up.
        shared_cores: cores that workers and Postgres have together; None where each has its own.
    """
    shard = max(rows / workers, costs.largest_cell * rows)
    binding = "largest cell" if costs.largest_cell * rows > rows / workers else "workers"
    asked = 0.0 if files else rows * (costs.copy + workers * costs.scan)
    received = costs.receive_file if files else costs.receive
    database, receiving = asked / min(workers, database_cores), shard * received
    if shared_cores is not None:
        database = max(database, (asked + rows * received) / shared_cores)
    found = {"database": database} if database > receiving else {binding: receiving}
    found["weighing"] = 0.0 if files else rows * costs.weigh / min(database_cores, 4)
    found["merging"] = costs.merge
    found["writing"] = costs.fixed + costs.start + rows * costs.people * costs.per_user
    found[binding] = found.get(binding, 0.0) + shard * (costs.chain + costs.update + costs.keep)
    return found


def draw(costs: Costs, file: Path) -> None:
    """Draws hours over workers, by interactions, with what binds each."""
    figure = Figure(figsize=(8.4, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for rows, colour in zip(SIZES, COLOURS, strict=True):
        found = [limits(costs, rows, w, DATABASE_CORES) for w in WORKERS]
        hours = [sum(one.values()) / 3600 for one in found]
        axes.plot(WORKERS, hours, color=colour, marker="o", markersize=4)
        filed = [limits(costs, rows, w, DATABASE_CORES, files=True) for w in WORKERS]
        axes.plot(
            WORKERS,
            [sum(one.values()) / 3600 for one in filed],
            color=colour,
            linestyle="--",
            linewidth=1.2,
        )
        axes.annotate(
            f"$10^{{{int(np.log10(rows))}}}$ interactions",
            (WORKERS[0], hours[0]),
            xytext=(0, 7),
            textcoords="offset points",
            color=colour,
        )
        before = ""
        for workers, one, hour in zip(WORKERS, found, hours, strict=True):
            binding = max(one, key=lambda name: one[name])
            if binding != before:
                axes.annotate(
                    binding,
                    (workers, hour),
                    xytext=(2, -13),
                    textcoords="offset points",
                    fontsize=7.5,
                    color="#555555",
                )
            before = binding
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(WORKERS, [str(one) for one in WORKERS])
    axes.set_xlabel(f"workers, a core each, and a Postgres of {DATABASE_CORES} cores")
    axes.set_ylabel("hours of a run, modelled")
    axes.set_title(
        "Modelled from measured costs; dashed: from Parquet files; below each line, what binds",
        loc="left",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
