"""Writes the alerts as a PrometheusRule: `python -m deploy.prometheus.operator_rules [BASE_URL]`.

Runbooks then are BASE_URL and the anchor, as in https://wiki.example.com/recparams/operations.html;
without it they are paths within the repository, as in alerts.yaml.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "deploy/prometheus/alerts.yaml"
FILE = ROOT / "deploy/components/monitoring/prometheus-rule.yaml"
DOCUMENT = "docs/operations.md"
HEADER = (
    "# Made of deploy/prometheus/alerts.yaml by `python -m deploy.prometheus.operator_rules`.\n"
)


def prometheus_rule(base_url: str = DOCUMENT) -> dict[str, Any]:
    """Returns the object, with runbooks at a base URL."""
    rules = yaml.safe_load(ALERTS.read_text().replace(f"{DOCUMENT}#", f"{base_url}#"))
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "recparams", "labels": {"app.kubernetes.io/name": "recparams"}},
        "spec": rules,
    }


def text(base_url: str = DOCUMENT) -> str:
    """Returns the file."""
    return HEADER + yaml.safe_dump(prometheus_rule(base_url), sort_keys=False, width=100)


if __name__ == "__main__":
    FILE.write_text(text(*sys.argv[1:2]))
