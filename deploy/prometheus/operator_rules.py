"""Writes the alerts as a PrometheusRule: `python -m deploy.prometheus.operator_rules [BASE_URL]`.

Runbooks are BASE_URL and the anchor, as in https://wiki.example.com/recparams/operations.html;
by default they stay as alerts.yaml has them, pages of the repository that pyproject.toml names.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
FILE = ROOT / "deploy/components/monitoring/prometheus-rule.yaml"
HEADER = (
    "# Made of deploy/prometheus/alerts.yaml by `python -m deploy.prometheus.operator_rules`.\n"
)


def public_page() -> str:
    """Returns the URL of the runbooks on the project's own pages."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        source: str = tomllib.load(file)["project"]["urls"]["Source"]
    return f"{source}/blob/main/docs/operations.md"


def prometheus_rule(base_url: str) -> dict[str, Any]:
    """Returns the object, with runbooks at a base URL."""
    rules = yaml.safe_load(ALERTS.read_text().replace(f"{public_page()}#", f"{base_url}#"))
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "recparams", "labels": {"app.kubernetes.io/name": "recparams"}},
        "spec": rules,
    }


def text(base_url: str) -> str:
    """Returns the file, with runbooks at a base URL."""
    return HEADER + yaml.safe_dump(prometheus_rule(base_url), sort_keys=False, width=100)


if __name__ == "__main__":
    FILE.write_text(text(*sys.argv[1:2] or [public_page()]))
