"""Chart of a demo: reward on held-out people, week by week."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recparams_simulation.demo import Week

BLUE, GREY = "#1f6fb4", "#8a8a8a"


def draw(weeks: Sequence[Week], file: Path) -> None:
    """Writes the learning curve as a PNG."""
    figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    numbers = [week.number for week in weeks]
    last = weeks[-1]

    for label, reward in (
        ("best possible", last.optimum.reward),
        ("hand-written rules", last.rules.reward),
        ("random", last.random.reward),
    ):
        axes.axhline(reward, color=GREY, linewidth=1.2, linestyle="--")
        axes.annotate(
            f"{label} {reward:.2f}",
            (numbers[-1], reward),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color="#555555",
        )
    learned = [week.learned.reward for week in weeks]
    axes.plot(numbers, learned, color=BLUE, linewidth=2.2, marker="o")
    axes.annotate(
        f"learned {learned[-1]:.2f}",
        (numbers[-1], learned[-1]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="right",
        color=BLUE,
        weight="bold",
    )

    recorded = sum(week.recorded.interactions for week in weeks)
    axes.set_title(
        f"On people it has never seen, after each week of learning ({recorded:,} interactions)",
        loc="left",
        fontsize=10.5,
    )
    axes.set_xlabel("weeks trained")
    axes.set_ylabel("expected reward of a recommendation")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(min(0.0, last.random.reward) - 0.05, last.optimum.reward + 0.15)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
