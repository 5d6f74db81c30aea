"""What a benchmark gives back, and how it is written down."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recparams_simulation.compare.markdown import table

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"


@dataclass(frozen=True)
class Goal:
    """A figure to hold: measured as a ratio to its reference, in the same run.

    Attributes:
        what: the thing measured.
        reference: what it is divided by.
        ratio: measured.
        hold: what to hold.
        at_most: whether the ratio is to stay below `hold` rather than to reach it.
        shortfall: why it falls short, where it does.
    """

    what: str
    reference: str
    ratio: float
    hold: float
    at_most: bool = False
    shortfall: str = ""

    @property
    def held(self) -> bool:
        """Whether the figure is reached."""
        return self.ratio <= self.hold if self.at_most else self.ratio >= self.hold


@dataclass(frozen=True)
class Table:
    """Rows of text under column names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a Markdown table, numbers to the right."""
        return table(self.columns, self.rows)


@dataclass(frozen=True)
class Section:
    """One benchmark's results.

    Attributes:
        title: a heading.
        parts: Markdown text and tables, in order.
        goals: figures to hold.
        charts: files beside RESULTS.md, by their alternative text.
    """

    title: str
    parts: Sequence[str | Table]
    goals: Sequence[Goal] = ()
    charts: dict[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """The section as Markdown."""
        parts = [part if isinstance(part, str) else part.markdown() for part in self.parts]
        pictures = [f"![{text}]({file})" for text, file in self.charts.items()]
        return "\n\n".join([f"## {self.title}", *parts, *pictures])


def docs_chart(name: str, folder: Path) -> Path:
    """Returns where a chart of the docs goes: in another folder than usual beside the results."""
    return (DOCS if folder.resolve() == FOLDER.resolve() else folder) / name


def goals_table(goals: Sequence[Goal]) -> Table:
    """The figures to hold and whether they hold."""
    return Table(
        ("what", "reference in the same run", "measured", "hold", ""),
        [
            (
                goal.what,
                goal.reference,
                f"{goal.ratio:.3g}",
                f"{'<=' if goal.at_most else '>='} {goal.hold:g}",
                "holds"
                if goal.held
                else f"**falls short**{': ' * bool(goal.shortfall)}" + goal.shortfall,
            )
            for goal in goals
        ],
    )
