"""What the pictures of the command line share: colours, style, and estimates with intervals."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from recparams.v1.evaluation_pb2 import Estimate

# Okabe & Ito: told apart by colour-blind people too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
REFUSED = "not enough overlap"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    # Names are text, not mathematics.
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # Nothing in the file may differ between two renderings of one answer.
    "svg.hashsalt": "recparams",
}


def interval_text(one: Estimate) -> str:
    """Returns an estimate with its first interval; REFUSED where there is none."""
    if not one.HasField("value"):
        return REFUSED
    return f"{one.value:.3f} [{one.intervals[0].low:.3f}, {one.intervals[0].high:.3f}]"


def forest(axes: Axes, rows: Sequence[tuple[str, Estimate, str]]) -> None:
    """Draws estimates with their first interval, top to bottom, and the numbers beside them."""
    for position, (_, one, colour) in enumerate(rows):
        known = one.HasField("value")
        if known:
            interval = one.intervals[0]
            axes.plot((interval.low, interval.high), (position, position), color=colour)
            axes.plot(one.value, position, "o", color=colour, markersize=5)
        axes.annotate(
            interval_text(one),
            (1.02, position),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8.5,
            color="#222222" if known else "#777777",
            fontstyle="normal" if known else "italic",
        )
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#e5e5e5")
    axes.set_axisbelow(True)
    if not any(one.HasField("value") for _, one, _ in rows):
        axes.set_xticks([])
