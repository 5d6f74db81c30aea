"""Alert rules and the dashboard: they parse, read what is there, and fire when they should."""

import asyncio
import functools
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from deploy.grafana import dashboard
from deploy.prometheus.operator_rules import public_page
from deploy.prometheus.promtool import NotFoundError, program
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, eventually
from tests.observed import documented
from tests.processes import communicate, run
from tests.support import ROOT, connect, request, wait_serving

FOLDER = ROOT / "deploy/prometheus"
OTHERS = {"up", "ALERTS", "process_cpu_seconds_total", "process_resident_memory_bytes"}
"""Metrics of Prometheus itself and of its client library."""


@functools.cache
def tool(name: str) -> Path:
    """A program of Prometheus; skips the test where it cannot be had."""
    try:
        return program(name)
    except NotFoundError as failure:
        pytest.skip(f"{name} cannot be had: {failure}")


def rules() -> list[dict[str, Any]]:
    """Alerts and recording rules."""
    groups = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Alerts alone."""
    return [rule for rule in rules() if "alert" in rule]


def queries() -> Iterator[str]:
    """The queries of the dashboard."""
    for panel in json.loads(dashboard.FILE.read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]


def selectors(expression: Any) -> Iterator[Any]:
    """What an expression reads."""
    if isinstance(expression, promql.VectorSelector):
        yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        inner = getattr(expression, name, None)
        if inner is not None:
            yield from selectors(inner)
    for inner in getattr(expression, "args", ()):
        yield from selectors(inner)


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in rules()), *queries()])
def test_queries_read_metrics_that_there_are(query: str) -> None:
    """The table in the docs is held to a real scrape by test_metrics."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = documented()
    read = list(selectors(promql.parse(query)))
    assert read
    for one in read:
        if one.name in recorded | OTHERS:
            continue
        name = re.sub("_bucket$", "", one.name)
        assert name in known, name
        given = {matcher.name for matcher in one.matchers.matchers}
        assert given <= known[name].labels, one.name


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_alerts_say_what_is_wrong_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    page = f"{public_page()}#{rule['alert'].lower()}"
    assert rule["annotations"]["runbook_url"] == page


def test_every_alert_has_cases() -> None:
    cases: dict[str, set[bool]] = {}
    for file in ("alerts_test.yaml", "alerts_slow_test.yaml"):
        for test in yaml.safe_load((FOLDER / file).read_text())["tests"]:
            for one in test["alert_rule_test"]:
                fires = bool(one["exp_alerts"])
                assert test["name"] == f"{one['alertname']} {'fires' if fires else 'does not fire'}"
                cases.setdefault(one["alertname"], set()).add(fires)
    assert cases == {rule["alert"]: {True, False} for rule in alerts()}


@pytest.mark.parametrize("file", ["alerts_test.yaml", "alerts_slow_test.yaml"])
def test_alerts_fire_when_they_should(file: str) -> None:
    done = run(tool("promtool"), "test", "rules", FOLDER / file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_up_to_date() -> None:
    assert dashboard.FILE.read_text() == dashboard.render(), (
        "run `python -m deploy.grafana.dashboard`"
    )


def ask(port: int, path: str) -> Any:
    """What Prometheus answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}", timeout=30) as answer:
        return json.load(answer)["data"]


async def test_prometheus_reads_a_server(start_server: Any, tmp_path: Path) -> None:
    """The configuration that is given out, but for the address and how often it scrapes."""
    metrics_port, port = (free_port("127.0.0.1", 0) for _ in range(2))
    text = (FOLDER / "prometheus.yaml").read_text()
    text = text.replace("server:9464", f"127.0.0.1:{metrics_port}").replace("15s", "1s")
    (tmp_path / "prometheus.yaml").write_text(text)
    (tmp_path / "alerts.yaml").symlink_to(FOLDER / "alerts.yaml")
    server = start_server(metrics_port=metrics_port, **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        await client.recommendation.GetRecommendationParams(request())
    prometheus = await asyncio.create_subprocess_exec(
        tool("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def answer(path: str) -> Any:
            try:
                return await asyncio.to_thread(ask, port, path)
            except OSError:
                return None

        async def decided() -> bool:
            found = await answer("query?query=sum(recparams_decisions_total)")
            return bool(found and found["result"] and found["result"][0]["value"][1] == "1")

        async def evaluated() -> bool:
            found = await answer("rules")
            return {one["health"] for group in found["groups"] for one in group["rules"]} == {"ok"}

        await eventually(decided)
        await eventually(evaluated)
        for query in queries():
            await asyncio.to_thread(ask, port, f"query?query={urllib.parse.quote(query)}")

        async def nothing_is_wrong() -> bool:
            return (await answer("alerts"))["alerts"] == []

        await eventually(nothing_is_wrong)
    finally:
        prometheus.terminate()
        await communicate(prometheus)
