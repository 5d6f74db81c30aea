"""The chart of all figures against what they are to hold."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from benchmarks.report import Goal

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HELD, SHORT = "#0072b2", "#d55e00"


def draw(goals: Sequence[Goal], file: Path) -> None:
    """Draws how far each figure reaches, 1 being what it is to hold, on a log scale."""
    reached = [goal.hold / goal.ratio if goal.at_most else goal.ratio / goal.hold for goal in goals]
    labels = [f"{goal.what}\nover {goal.reference}" for goal in goals]
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.55 * len(goals)), layout="constrained")
    places = range(len(goals))
    colours = [HELD if goal.held else SHORT for goal in goals]
    axes.hlines(places, 1, reached, color=colours, linewidth=3)
    axes.scatter(reached, places, color=colours, s=40, zorder=3)
    for place, value, goal in zip(places, reached, goals, strict=True):
        axes.annotate(
            f"{goal.ratio:.3g} (hold {'<=' if goal.at_most else '>='} {goal.hold:g})",
            (value, place),
            xytext=(8 if value >= 1 else -8, 0),
            textcoords="offset points",
            ha="left" if value >= 1 else "right",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    low, high = min([1.0, *reached]), max([1.0, *reached])
    axes.set_xlim(low / 8, high * 8)
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("measured over what is to hold (right of 1: holds)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(file, dpi=150)
    plt.close(figure)
