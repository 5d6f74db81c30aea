"""Traces: one from a caller through the server to SQL and training, without anybody's data."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from recparams.v1 import training_pb2 as tpb
from recparams_server.observability import opentelemetry_traces, tracing
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, eventually
from tests.processes import communicate, run
from tests.support import (
    ADMIN,
    ROOT,
    connect,
    environment,
    failure_of,
    start_in_vain,
    wait_serving,
)

PERSON = "somebody-with-a-name-7c1f"
TRACE = "0af7651916cd43dd8448eb211c80319c"
REQUEST_ID = "a-request-with-a-name-93ab"


class Collector(otlp_grpc.TraceServiceServicer):
    """Takes in spans as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.received: list[otlp.ExportTraceServiceRequest] = []

    async def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: Any
    ) -> otlp.ExportTraceServiceResponse:
        self.received.append(request)
        return otlp.ExportTraceServiceResponse()

    def everything(self) -> bytes:
        """All that was ever sent."""
        return b"".join(one.SerializeToString() for one in self.received)

    def spans(self, service: str) -> list[trace_pb2.Span]:
        """Of a service, by its name."""
        return [
            span
            for one in self.received
            for resource in one.resource_spans
            if any(
                attribute.key == "service.name" and attribute.value.string_value == service
                for attribute in resource.resource.attributes
            )
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A collector, and variables that send spans to it."""
    taking = Collector()
    server = grpc.aio.server()
    otlp_grpc.add_TraceServiceServicer_to_server(taking, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield taking
    await server.stop(0)


BACKEND = """
import sys
from recparams_client import DecisionRequest, Interaction, PersonalityProfile
person = sys.argv[1]
with trace.get_tracer("test").start_as_current_span("page"):
    client.put_personality_profiles({person: PersonalityProfile(75, 60, 40, 80, 30)})
    decision = client.get_recommendation_params(
        DecisionRequest(person, "music", mood="calm", time_of_day="evening"), timeout=30
    )
    client.record_interactions([Interaction(person, decision.decision_token, ("like",))])
provider.shutdown()
"""


async def call_from_a_backend(target: str) -> None:
    """A decision and a reaction, in one trace, by a process that does as the documents say."""
    (start,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/observability.md").read_text(), re.DOTALL | re.M
    )
    script = start.replace("127.0.0.1:50051", target) + BACKEND
    environment = {**os.environ, "OTEL_SERVICE_NAME": "backend"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, PERSON, env=environment, cwd=ROOT
    )
    await communicate(process)
    assert process.returncode == 0


def by_name(spans: list[trace_pb2.Span]) -> dict[str, trace_pb2.Span]:
    """The last span of each name."""
    return {span.name: span for span in spans}


async def test_a_trace_goes_from_the_caller_to_sql(collector: Collector, start_server: Any) -> None:
    server = start_server(tracing="on", **SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
    await call_from_a_backend(server.target)
    assert await asyncio.to_thread(server.terminate) == 0
    sent = {span.span_id: span for span in collector.spans("backend")}
    (page,) = [span for span in sent.values() if span.name == "page"]
    ours = [span for span in collector.spans("recparams") if span.trace_id == page.trace_id]
    calls = [span for span in ours if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]
    assert {span.name.rpartition("/")[2] for span in calls} == {
        "PutPersonalityProfiles",
        "GetRecommendationParams",
        "RecordInteractions",
    }
    for call in calls:
        assert sent[call.parent_span_id].name == call.name
        queries = [span for span in ours if span.parent_span_id == call.span_id]
        assert queries, call.name
        assert all(span.kind == trace_pb2.Span.SPAN_KIND_CLIENT for span in queries)
    # What nobody asked for makes no traces: looking for a new model, and health probes.
    assert len(ours) == len(collector.spans("recparams"))
    assert b"INSERT INTO interactions" in collector.everything()
    assert PERSON.encode() not in collector.everything()


async def test_a_trace_goes_on_in_the_trainer(
    collector: Collector, start_server: Any, database_url: str
) -> None:
    server = start_server(tracing="on", **SMALL)
    given = (*ADMIN, ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"))
    async with connect(server.target) as client:
        await wait_serving(client)
        started = tpb.TriggerTrainingRequest(request_id=REQUEST_ID)
        await client.training.TriggerTraining(started, metadata=given)
        # Postgres quotes the row that is in the way.
        again = await failure_of(
            client.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=given)
        )
        assert again.reason == "TRAINING_ALREADY_RUNNING"

        async def trained() -> bool:
            return any(span.name == "train" for span in collector.spans("recparams-worker"))

        await eventually(trained)
    assert await asyncio.to_thread(server.terminate) == 0
    worker, calls = collector.spans("recparams-worker"), collector.spans("recparams")
    assert {span.trace_id.hex() for span in (*worker, *calls)} == {TRACE}
    spans = {span.name: span for span in worker}
    job = spans["train"]
    assert job.parent_span_id in {
        span.span_id for span in calls if span.name.endswith("/TriggerTraining")
    }
    for stage in ("starting", "reading", "preparing", "updating", "writing"):
        assert spans[stage].parent_span_id == job.span_id
    assert any(span.parent_span_id == spans["writing"].span_id for span in worker)
    assert b"INSERT INTO system_tasks" in collector.everything()
    # The trainer says several times a second how far it is.
    assert b"SET stage" not in collector.everything()
    assert REQUEST_ID.encode() not in collector.everything()
    assert b"already exists" not in collector.everything()


async def test_log_lines_name_their_trace(collector: Collector, database_url: str) -> None:
    parent = {"TRACEPARENT": f"00-{TRACE}-b7ad6b7169203331-01"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "recparams_server.jobs", "train", "1"),
        env={**environment(database_url, tracing="on"), **parent},
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )
    _, output = await communicate(process)
    (line,) = map(json.loads, output.splitlines())
    assert line["event"] == "run is not pending"
    assert line["trace_id"] == TRACE
    assert {span.trace_id.hex() for span in collector.spans("recparams-worker")} == {TRACE}


def test_a_collector_that_is_away_holds_nothing_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = f"http://127.0.0.1:{free_port('127.0.0.1', 0)}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", away)
    started = time.monotonic()
    done = run(
        *(sys.executable, "-m", "recparams_server.jobs", "train", "1"),
        env=environment(database_url, tracing="on"),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < opentelemetry_traces.STOP_SECONDS + 5
    assert "aborting retry" in done.stderr


def test_tracing_without_its_packages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused = start_in_vain(tracing="on")
    assert refused.returncode == 1
    assert tracing.MISSING in refused.stderr
    assert "Traceback" not in refused.stderr


def test_what_is_off_is_not_imported() -> None:
    assert tracing.interceptors() == []
    assert tracing.carrier() == {}
    code = (
        "import sys, recparams_server.app, recparams_server.jobs.__main__\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert run(sys.executable, "-c", code, cwd=ROOT).returncode == 0
