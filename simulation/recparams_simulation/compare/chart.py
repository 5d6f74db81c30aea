"""Chart of a comparison: regret after logs of each size."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recparams_rl.learners.registry import LEARNERS
from recparams_simulation.compare.report import BASELINE, Results

GREY = "#8a8a8a"
_MARKERS = "osD^vP*X<"


def draw(results: Results, file: Path) -> None:
    """Writes the chart as a PNG: ours solid, outside libraries dashed, bars 95 % intervals."""
    figure = Figure(figsize=(9.0, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    sizes = results.plan.sizes
    rules = results.regret(BASELINE, sizes[-1]).value
    label = f"{BASELINE} {rules:.2f}"
    axes.axhline(rules, color=GREY, linewidth=1.4, linestyle=":", label=label)

    shown = [name for name in results.systems if name not in (BASELINE, "random")]
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for number, name in enumerate(shown):
        means = [results.regret(name, size) for size in sizes]
        # Side by side, so that bars do not hide each other.
        shift = 1.0 + 0.035 * (number - len(shown) / 2)
        axes.errorbar(
            [size * shift for size in sizes],
            [mean.value for mean in means],
            yerr=[mean.half for mean in means],
            label=f"{name} {means[-1].value:.2f}",
            color=colours[2 * number % 20 + (number >= 10)],
            linestyle="-" if name in LEARNERS else "--",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=5,
            linewidth=1.5,
            elinewidth=0.9,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("interactions learned from")
    axes.set_ylabel("regret of a decision, in units of reward")
    chance = results.regret("random", sizes[-1]).value
    axes.set_title(
        f"On people never seen: less is better (random {chance:.2f})", loc="left", fontsize=10.5
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, title="at the right end")
    figure.savefig(file)
