"""A tuning as a picture: the difference of each configuration to the present one."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recparams.v1 import tuning_pb2 as pb
from recparams.v1.evaluation_pb2 import Estimate, Interval
from recparams_server.cli.charts import COLOURS, STYLE, forest

_COLOUR_OF = {pb.TUNING_VERDICT_BETTER: COLOURS[2], pb.TUNING_VERDICT_WORSE: COLOURS[1]}


def height(found: pb.Tuning) -> float:
    """Returns the height of the picture in inches."""
    return 1.1 + 0.3 * len(found.configurations)


def draw_differences(figure: Figure, found: pb.Tuning) -> None:
    """Draws the differences with their intervals, in the order of the grid."""
    axes = figure.add_subplot()
    forest(
        axes,
        [
            (one.name, _estimate(one), _COLOUR_OF.get(one.verdict, COLOURS[0]))
            for one in found.configurations[1:]
        ],
    )
    axes.axvline(0.0, color="#777777", linewidth=1)
    axes.set_xlabel("difference to the present settings in reward a recommendation")


def draw(found: pb.Tuning, file: Path) -> None:
    """Draws the differences into a file. Raises OSError or ValueError where that fails."""
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, height(found)), layout="constrained")
        FigureCanvasAgg(figure)
        draw_differences(figure, found)
        figure.savefig(file, dpi=150)


def _estimate(one: pb.TunedConfiguration) -> Estimate:
    if not one.HasField("difference"):
        return Estimate(reason=one.reason)
    interval = Interval(method="simultaneous", low=one.low, high=one.high)
    return Estimate(value=one.difference, intervals=[interval])
