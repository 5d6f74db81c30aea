"""Writes dashboard.json, which Grafana reads: `python -m deploy.grafana.dashboard`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("dashboard.json")
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True)
class Panel:
    """A picture, or a number where `kind` is stat.

    Attributes:
        title: what it shows.
        queries: PromQL, by the legend of its lines.
        unit: Grafana's name of the unit.
        help: shown beside the title.
        kind: timeseries or stat.
        width: of 24.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    help: str = ""
    kind: str = "timeseries"
    width: int = 8


def stat(title: str, query: str, unit: str = "short") -> Panel:
    """One number."""
    return Panel(title, {"": query}, unit, kind="stat", width=4)


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        stat("Servers", "count(recparams_serving == 1)"),
        stat("Active version", "max(recparams_active_version)"),
        stat("Rolled out to", "max(recparams_rollout_percent)", "percent"),
        stat("Learning is worth", "max(recparams_learning_gain)"),
        stat(
            "Since training",
            "time() - max(recparams_training_last_timestamp_seconds)",
            "s",
        ),
        stat("Alerts", 'count(ALERTS{alertname=~"Recparams.*", alertstate="firing"}) or vector(0)'),
    ),
    "Calls": (
        Panel(
            "Calls",
            {"{{method}}": "sum by (method) (rate(recparams_rpcs_total[5m]))"},
            "reqps",
        ),
        Panel(
            "Failed calls",
            {"{{method}}": "recparams:rpc_errors:ratio5m"},
            "percentunit",
            "Calls that ended in a way that is the server's to answer for.",
        ),
        Panel(
            "99 % are quicker than",
            {"{{method}}": "recparams:rpc_seconds:p99_5m"},
            "s",
            "Time in the handler; of streams, to their end.",
        ),
    ),
    "Reward": (
        Panel(
            "Mean reward of a day, by arm",
            {"{{arm}}": "recparams:reward:mean1d"},
            help="Below 0.3 is not acceptable. Arm none: recorded without a decision token.",
        ),
        Panel(
            "Reactions",
            {
                "{{reaction}}": "sum by (reaction) (rate(recparams_reactions_total[1h]))"
                " / on () group_left () sum(rate(recparams_interactions_recorded_total[1h]))"
            },
            "percentunit",
            "Share of the interactions with the reaction.",
        ),
        Panel(
            "What learning is worth",
            {
                "low": "max(recparams_learning_gain_low)",
                "gain": "max(recparams_learning_gain)",
                "high": "max(recparams_learning_gain_high)",
            },
            help="Mean reward of what was learned minus that of the rules, by the people who are "
            "held back, with its interval.",
        ),
        Panel(
            "RL minus the other arm",
            {
                "{{arm}}, low": "max by (arm) (recparams_arm_difference_low)",
                "{{arm}}, high": "max by (arm) (recparams_arm_difference_high)",
            },
            help="An interval for the difference in mean reward, valid at every look. "
            "Wholly below 0 the version is taken back.",
        ),
        Panel(
            "Check of the sample ratio",
            {"experiment {{experiment}}": "min by (experiment) (recparams_sample_ratio_p_value)"},
            help="p-value; below 0.0001 the arms do not have their shares of the people.",
        ),
        Panel(
            "Decisions by source",
            {"{{source}}": "sum by (source) (rate(recparams_decisions_total[5m]))"},
            "reqps",
        ),
        Panel(
            "Decisions by arm and version",
            {"{{arm}} {{version}}": "sum by (arm, version) (rate(recparams_decisions_total[5m]))"},
            "reqps",
        ),
        Panel(
            "Interactions recorded",
            {"{{arm}}": "sum by (arm) (rate(recparams_interactions_recorded_total[5m]))"},
            "reqps",
        ),
    ),
    "Training": (
        Panel(
            "Runs of the last week",
            {"{{status}}": "increase(max by (status) (recparams_training_runs_total)[1w:1h])"},
        ),
        Panel(
            "What became of versions in four weeks",
            {
                "{{outcome}}": "increase(max by (outcome) (recparams_training_outcomes_total)"
                "[4w:1h])"
            },
        ),
        Panel(
            "Stages of the last run",
            {
                "{{stage}}": "max by (stage) (recparams_training_stage_seconds)",
            },
            "s",
        ),
        Panel(
            "Interactions not yet trained",
            {"waiting": "max(recparams_training_interactions_waiting)"},
        ),
        Panel(
            "Q-table",
            {
                "states": "max(recparams_q_table_states)",
                "states and actions": "max(recparams_q_table_state_actions)",
            },
            help="Visited, after the last run.",
        ),
        Panel(
            "Q-values",
            {
                "mean": "max(recparams_q_table_mean)",
                "largest": "max(recparams_q_table_max)",
            },
        ),
        Panel(
            "Reward of what the last run trained",
            {"mean": "max(recparams_training_reward)"},
        ),
    ),
    "Servers": (
        Panel("Version served", {"{{instance}}": "recparams_serving_version"}),
        Panel("Age of the version", {"age": "max(recparams_model_age_seconds)"}, "s"),
        Panel(
            "Database connections in use",
            {
                "{{instance}}": 'recparams_database_connections{state="in_use"}',
                "most": "max(recparams_database_connections_max)",
            },
        ),
        Panel(
            "Stored profiles found in memory",
            {
                "{{instance}}": "rate(recparams_profile_cache_lookups_total"
                '{result="hit"}[5m]) / ignoring (result) sum without (result) '
                "(rate(recparams_profile_cache_lookups_total[5m]))"
            },
            "percentunit",
        ),
        Panel(
            "Longest stall",
            {"{{instance}}": "recparams_event_loop_stall_seconds"},
            "s",
            "Longest time in which a server did one thing and answered nobody.",
        ),
        Panel("CPU", {"{{instance}}": 'rate(process_cpu_seconds_total{job="recparams"}[5m])'}),
        Panel(
            "Memory", {"{{instance}}": 'process_resident_memory_bytes{job="recparams"}'}, "bytes"
        ),
        Panel(
            "Worker processes",
            {"{{instance}} {{task}}": "recparams_worker_processes"},
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in ROWS.items():
        place = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        panels.append({"type": "row", "title": row, "gridPos": place, "panels": []})
        y, x = y + 1, 0
        height = HEIGHT if members[0].kind == "timeseries" else HEIGHT // 2
        for member in members:
            if x + member.width > WIDTH:
                x, y = 0, y + height
            panels.append(_panel(member, {"x": x, "y": y, "w": member.width, "h": height}))
            x += member.width
        y += height
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "recparams",
        "title": "recparams",
        "tags": ["recparams"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + n),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for n, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
