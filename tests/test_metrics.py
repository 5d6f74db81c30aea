"""Prometheus metrics of gates and rollouts, and the alerts that read them."""

import asyncio
import re
import urllib.request
from typing import Any

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from server.demo_server import free_port
from tests.faults import SMALL, eventually
from tests.support import ROOT, connect, logged, record, train, wait_serving
from tests.trust import LIKE, decide, live, set_rollout


def scrape(port: int) -> dict[str, float]:
    """Every sample by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def decisions(port: int) -> float:
    """All decisions, whatever the arm, version and source."""
    found = scrape(port)
    return sum(found[name] for name in found if name.startswith("recparams_decisions_total"))


async def test_metrics_follow_gates_and_rollouts(start_server: Any) -> None:
    port = free_port("127.0.0.1", 0)
    settings = {**SMALL, "gates": "enforce", "watch_seconds": 0.2, "experiment_burn_in": 30}
    server = start_server(metrics_port=port, **settings)

    async def shows(name: str, value: float) -> bool:
        return (await asyncio.to_thread(scrape, port)).get(name) == value

    async with connect(server.target) as client:
        await wait_serving(client)
        await eventually(lambda: shows("recparams_training_gated", 0))
        await record(client, *(logged(f"i{n}", f"u{n}", LIKE) for n in range(50)))
        run = await train(client)
        await eventually(lambda: shows("recparams_training_gated", 1))

        await set_rollout(client, version=run.model_version, percent=50)
        await eventually(lambda: shows("recparams_rollout_percent", 50))
        assert await shows("recparams_active_version", run.model_version)
        people = [f"user-{n}" for n in range(400)]

        async def is_ramping() -> bool:
            arms = {answer.policy_arm for answer in await decide(client, people[:50])}
            return arms == {pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED}

        await eventually(is_ramping)
        at_first = await asyncio.to_thread(decisions, port)
        answers = await live(
            client,
            people,
            lambda a: [LIKE if a.policy_arm == pb.POLICY_ARM_RULE_BASED else types.REACTION_SKIP],
        )
        assert await asyncio.to_thread(decisions, port) == at_first + len(answers)
        await eventually(lambda: shows('recparams_rollouts_taken_back{by="watch"}', 1), 60)
        assert {a.policy_arm for a in answers} == {pb.POLICY_ARM_RL, pb.POLICY_ARM_RULE_BASED}
        await eventually(lambda: shows("recparams_active_version", 0))
        assert 'recparams_arm_reward{arm="rl"}' not in await asyncio.to_thread(scrape, port)


def test_alerts_read_metrics_that_there_are() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
    expressions = re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)
    assert len(expressions) == rules.count("- alert:") > 0
    declared = set(re.findall(r'"(recparams_\w+)"', (ROOT / "server" / "metrics.py").read_text()))
    assert set(re.findall(r"recparams_\w+", " ".join(expressions))) <= declared
