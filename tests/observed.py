"""What tests of metrics, alerts and the dashboard share: a scrape, and the tables in the docs."""

import re
import urllib.request
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tests.support import ROOT

DOCUMENT = ROOT / "docs/observability.md"


@dataclass(frozen=True)
class Family:
    """A metric: its type, and the labels of its samples, which may be none."""

    type: str
    labels: set[str] = field(default_factory=set)


def scrape(port: int) -> str:
    """What Prometheus reads."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def families(text: str) -> dict[str, Family]:
    """The service's own metrics in a scrape, by the names that queries use."""
    found = {}
    for one in text_string_to_metric_families(text):
        if one.name.startswith("recparams_") and not one.name.endswith("_created"):
            name = f"{one.name}_total" if one.type == "counter" else one.name
            labels = {label for sample in one.samples for label in sample.labels} - {"le"}
            found[name] = Family(one.type, labels)
    return found


def documented() -> dict[str, Family]:
    """The tables of metrics in the documents."""
    rows = re.findall(
        r"^\| `(recparams_\w+)` \| (\w+) \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE
    )
    assert len({name for name, _, _ in rows}) == len(rows) > 0
    return {name: Family(kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
