"""An evaluation as one HTML page with pictures, readable offline."""

import io
from collections.abc import Callable, Iterable, Sequence
from datetime import date, time
from importlib.resources import files

import numpy as np
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import training_pb2 as pb
from recparams_rl.action import ACTIONS, ENERGIES
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY
from recparams_server.cli.charts import COLOURS, REFUSED, STYLE, forest, interval_text
from recparams_server.cli.output import gain_sentence, when
from recparams_server.cli.tuning_chart import draw_differences, height
from recparams_server.cli.tuning_output import (
    settings_lines,
    table_rows,
    tuning_notes,
    tuning_sentence,
)

MAIN = "dr"
"""The estimator to go by: doubly robust."""
RULES, RANDOM = "rule-based", "random"
NARROW = 6.4
"""Width in inches of pictures that a phone shows whole."""
_MOST_DATES = 5


def render(answer: pb.EvaluateResponse, confidence: float) -> str:
    """Returns the HTML page; confidence is that of the intervals."""
    template = files("recparams_server.cli").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {
        "when": when,
        "number": _number,
        "interval": interval_text,
        "gain": gain_sentence,
    }
    rows = len(answer.policies)
    pictures = {
        "policies": _picture(_values, answer, 1.0 + 0.35 * max(1, rows), NARROW),
        "estimators": _picture(_all_values, answer, 1.0 + 0.95 * max(1, rows)),
        "differences": _picture(_differences, answer, 1.0 + 0.3 * len(answer.differences)),
        "daily": _picture(_daily, answer, 2.8 if answer.daily else 0.6, NARROW),
        "coverage": _picture(_coverage, answer, 2.9 if answer.coverage else 0.6),
        "tuning": _picture(_tuning, answer, height(answer.tuning))
        if answer.HasField("tuning")
        else "",
        "actions": _picture(_actions, answer, 2.0 + 0.27 * rows if answer.interactions else 0.6),
    }
    return page.from_string(template).render(
        answer=answer,
        findings=_findings(answer),
        pictures=pictures,
        segments=_segments(answer),
        tuning={
            "sentence": tuning_sentence(answer.tuning),
            "rows": list(table_rows(answer.tuning)),
            "notes": tuning_notes(answer.tuning),
            "settings": settings_lines(answer.tuning),
        },
        confidence=f"{100 * confidence:g} %",
        unfinished=_unfinished_day(answer) is not None,
    )


def _number(value: float) -> str:
    return f"{value:.3f}"


def _segments(answer: pb.EvaluateResponse) -> list[tuple[str, str, list[epb.Estimate]]]:
    """Returns dimension, part, and the doubly robust estimate of every policy."""
    columns = [
        {
            (segment.dimension, segment.value): next(
                (one for one in segment.estimates if one.estimator == MAIN), epb.Estimate()
            )
            for segment in policy.segments
        }
        for policy in answer.policies
    ]
    parts = list(columns[0]) if columns else []
    return [(*part, [column.get(part, epb.Estimate()) for column in columns]) for part in parts]


def _findings(answer: pb.EvaluateResponse) -> list[str]:
    """Returns a sentence for each policy that is compared with the rules; else for each pair."""
    pairs = [
        (pair.policy, pair.other, pair.difference, 1)
        if pair.policy != RULES
        else (pair.other, pair.policy, pair.difference, -1)
        for pair in answer.differences
    ]
    # That random choices are worse than the rules is no news.
    with_rules = [pair for pair in pairs if pair[1] == RULES and pair[0] != RANDOM]
    return [_finding(*pair) for pair in with_rules or pairs]


def _finding(policy: str, other: str, found: epb.Estimate, sign: int) -> str:
    """Returns a difference as a sentence; sign is -1 where it is that of the other one."""
    name = "the rules" if other == RULES else other
    reason = found.reason.removeprefix(f"{policy}: ") or REFUSED
    policy = f"{policy[:1].upper()}{policy[1:]}"
    if not found.HasField("value"):
        return f"{policy} cannot be compared with {name}: {reason}."
    interval = found.intervals[0]
    low, high = sorted((sign * interval.low, sign * interval.high))
    if low <= 0 <= high:
        told = f"{sign * found.value:+.2f} reward a recommendation, {low:+.2f} to {high:+.2f}"
        return f"{policy} cannot be told from {name}: {told}."
    more = "more" if low > 0 else "less"
    least, most = sorted((abs(low), abs(high)))
    return (
        f"{policy} is worth {abs(found.value):.2f} {more} than {name} a recommendation, "
        f"{least:.2f} to {most:.2f}."
    )


def _picture(
    draw: Callable[[Figure, pb.EvaluateResponse], None],
    answer: pb.EvaluateResponse,
    height: float,
    width: float = 9.0,
) -> Markup:
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        draw(figure, answer)
        # Once: a figure that has the engine draws everything twice.
        layout = ConstrainedLayoutEngine()
        layout.execute(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    # matplotlib escapes the text it draws; only the prologue has to go.
    return Markup(svg[svg.index("<svg") :])  # noqa: S704


def _values(figure: Figure, answer: pb.EvaluateResponse) -> None:
    """Draws the estimate to go by of each policy."""
    _forest_of_values(
        figure,
        answer,
        [
            (policy.name, one, COLOURS[row % len(COLOURS)])
            for row, policy in enumerate(answer.policies)
            for one in policy.estimates
            if one.estimator == MAIN
        ],
    )


def _all_values(figure: Figure, answer: pb.EvaluateResponse) -> None:
    """Draws every estimate of each policy."""
    _forest_of_values(
        figure,
        answer,
        [
            (f"{policy.name}  {one.estimator}", one, COLOURS[row % len(COLOURS)])
            for row, policy in enumerate(answer.policies)
            for one in policy.estimates
        ],
    )


def _forest_of_values(
    figure: Figure, answer: pb.EvaluateResponse, rows: Sequence[tuple[str, epb.Estimate, str]]
) -> None:
    axes = figure.add_subplot()
    forest(axes, rows)
    if answer.interactions:
        axes.axvline(answer.average_reward, color="#777777", linestyle="--", linewidth=1)
        axes.set_title(
            f"dashed: what was logged, {answer.average_reward:.3f}", loc="left", fontsize=9
        )
    axes.set_xlabel("reward a recommendation")


def _differences(figure: Figure, answer: pb.EvaluateResponse) -> None:
    axes = figure.add_subplot()
    pairs = answer.differences
    forest(axes, [(f"{pair.policy} - {pair.other}", pair.difference, COLOURS[0]) for pair in pairs])
    axes.axvline(0.0, color="#777777", linewidth=1)
    axes.set_xlabel("difference in reward a recommendation")


def _tuning(figure: Figure, answer: pb.EvaluateResponse) -> None:
    draw_differences(figure, answer.tuning)


def _daily(figure: Figure, answer: pb.EvaluateResponse) -> None:
    axes = figure.add_subplot()
    if not answer.daily:
        _nothing(axes)
        return
    unfinished = _unfinished_day(answer)
    for row, arm in enumerate(sorted({one.arm for one in answer.daily})):
        rewards = {_ordinal(one.day): one.average_reward for one in answer.daily if one.arm == arm}
        at = sorted(rewards)
        colour = COLOURS[row % len(COLOURS)]
        line = [rewards[day] for day in at]
        axes.plot(at, line, marker="o", markersize=4, color=colour, label=arm)
        if at[-1] == unfinished:
            # Over a line that is there: what it hides is of a day that is not over.
            axes.plot(at[-1], line[-1], "o", markersize=8, markerfacecolor="none", color=colour)
    days = sorted({one.day for one in answer.daily})
    shown = days[:: -(-len(days) // _MOST_DATES)]
    axes.set_xticks([_ordinal(day) for day in shown], shown)
    axes.set_ylabel("mean reward logged")
    axes.grid(axis="y", color="#e5e5e5")
    axes.legend(
        frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2
    )


def _unfinished_day(answer: pb.EvaluateResponse) -> int | None:
    """Returns the day, as a number, that the period ends within, if there is anything of it."""
    end = answer.period_end.ToDatetime()
    last = max((_ordinal(one.day) for one in answer.daily), default=0)
    return last if end.toordinal() == last and end.time() != time.min else None


def _ordinal(day: str) -> int:
    """Returns a day as a number, so that days without interactions leave a gap."""
    return date.fromisoformat(day).toordinal()


def _coverage(figure: Figure, answer: pb.EvaluateResponse) -> None:
    if not answer.coverage:
        _nothing(figure.add_subplot())
        return
    contents = _in_order((one.content_type for one in answer.coverage), CONTENT_TYPES)
    # All that could have come: what is empty is what one wants to see.
    moods = _in_order((*MOODS, *(one.mood for one in answer.coverage)), MOODS)
    times = _in_order((*TIMES_OF_DAY, *(one.time_of_day for one in answer.coverage)), TIMES_OF_DAY)
    most = max(one.interactions for one in answer.coverage)
    for axes, content in zip(
        np.atleast_1d(figure.subplots(1, len(contents), sharey=True)), contents, strict=True
    ):
        grid = np.zeros((len(moods), len(times)))
        for one in answer.coverage:
            if one.content_type == content:
                grid[moods.index(one.mood), times.index(one.time_of_day)] = one.interactions
        _heat(axes, grid, most, lambda count: f"{count:.0f}" if count else "none")
        axes.set_title(content, fontsize=10)
        axes.set_xticks(range(len(times)), times, fontsize=8)
        axes.set_yticks(range(len(moods)), moods)


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Names once each, in the usual order; those of other vocabularies last."""
    distinct = dict.fromkeys(names)
    return [name for name in known if name in distinct] + [n for n in distinct if n not in known]


def _actions(figure: Figure, answer: pb.EvaluateResponse) -> None:
    """Draws the share of each action, logged and under each policy; a panel for each energy."""
    if not answer.interactions:
        _nothing(figure.add_subplot())
        return
    mixes = [("logged", answer.logged_action_shares)]
    mixes += [(policy.name, policy.action_shares) for policy in answer.policies]
    shares = np.array([mix or [0.0] * len(ACTIONS) for _, mix in mixes])
    panels = figure.subplots(1, len(ENERGIES), sharey=True)
    for axes, energy in zip(panels, ENERGIES, strict=True):
        columns = [i for i, action in enumerate(ACTIONS) if action.energy == energy]
        _heat(axes, shares[:, columns], shares.max(), lambda share: f"{100 * share:.0f}")
        axes.set_title(f"{energy} energy", fontsize=10)
        labels = [f"{ACTIONS[i].diversity}, {ACTIONS[i].novelty}" for i in columns]
        axes.set_xticks(range(len(columns)), labels, fontsize=8, rotation=90)
        axes.set_yticks(range(len(mixes)), [name for name, _ in mixes])


def _heat(
    axes: Axes,
    grid: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    most: float,
    text: Callable[[float], str],
) -> None:
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        colour = "white" if value > 0.6 * most else "#333333"
        cell = axes.text(column, row, text(value), ha="center", va="center", fontsize=7.5)
        # Within the axes: there is no need to measure it for the layout.
        cell.set(color=colour, in_layout=False)
    axes.tick_params(length=0)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no interactions", ha="center", va="center", transform=axes.transAxes)
    axes.set_axis_off()
