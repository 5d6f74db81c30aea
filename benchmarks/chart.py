"""The chart of all figures against what they are to hold, and charts in panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from benchmarks.report import Goal

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe & Ito: told apart by colour-blind people too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
COLUMNS = 3
HELD, SHORT = COLOURS[:2]
GREY = "#8a8a8a"


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


@dataclass(frozen=True)
class Line:
    """A line of a panel; one label has one style in all panels.

    Attributes:
        label: what it is of.
        x, y, error: as many; bars reach from y - error to y + error.
        flat: if it is what others are held against: grey, without marks.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float]
    flat: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines on common axes; where `logarithmic`, the horizontal one is, with a tick at each x."""

    title: str
    xlabel: str
    lines: Sequence[Line]
    logarithmic: bool = False


def draw_panels(panels: Sequence[Panel], ylabel: str, file: Path) -> None:
    """Draws panels side by side, with one legend for all."""
    colours, dashes = iter(COLOURS), iter(("-", "--", ":"))
    styles: dict[str, dict[str, object]] = {}
    for line in (line for panel in panels for line in panel.lines):
        if line.label not in styles:
            styles[line.label] = (
                {"color": GREY, "linestyle": next(dashes)}
                if line.flat
                else {"color": next(colours), "marker": "o", "markersize": 4, "capsize": 2}
            )
    rows = -(-len(panels) // COLUMNS)
    figure, all_axes = plt.subplots(
        rows, COLUMNS, figsize=(4.0 * COLUMNS, 3.4 * rows), layout="constrained", squeeze=False
    )
    shown = {}
    for axes in all_axes.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(all_axes.flat, panels, strict=False):
        for line in panel.lines:
            error = None if line.flat else line.error
            shown[line.label] = axes.errorbar(line.x, line.y, yerr=error, **styles[line.label])
        if panel.logarithmic:
            ticks = panel.lines[0].x
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axes.minorticks_off()
        axes.set_ylim(bottom=0.0)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.set_xlabel(panel.xlabel)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in all_axes[:, 0]:
        axes.set_ylabel(ylabel)
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)
