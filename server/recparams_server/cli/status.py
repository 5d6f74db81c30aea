"""`recparams status`: the state of the service."""

from collections.abc import Iterator
from datetime import UTC, datetime

import click
from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import system_pb2 as pb
from recparams.v1 import system_pb2_grpc as grpc_pb
from recparams_server.cli.connection import SECONDS, channel, json_option, server_options
from recparams_server.cli.output import (
    enum_name,
    gain_sentence,
    print_facts,
    print_json,
    version_name,
    when,
)


@click.command()
@server_options
@json_option
def status(
    address: str,
    admin_key: str | None,  # noqa: ARG001 - health needs no key
    as_json: bool,
) -> None:
    """Show the state of the service: server, database, served version, training.

    \b
    recparams status
    recparams status --json
    """
    with channel(address) as opened:
        health = grpc_pb.SystemServiceStub(opened).GetSystemHealth(
            pb.GetSystemHealthRequest(), timeout=SECONDS
        )
    if as_json:
        print_json(health)
    else:
        print_facts(_facts(health))


def _facts(health: pb.GetSystemHealthResponse) -> Iterator[tuple[str, object]]:
    server, database = health.server, health.database
    yield "server", f"{server.version}, process {server.pid}, up {_span(server.uptime_seconds)}"
    said = [f"answers within {1000 * database.select_seconds:.1f} ms"] if database.answers else []
    if database.problem:
        said.append(database.problem)
    yield "database", "; ".join(said)
    yield from _served(health.served)
    if health.HasField("learning_gain"):
        yield "learning is worth", gain_sentence(health.learning_gain)
    if health.HasField("last_training_run"):
        run = health.last_training_run
        yield "last training run", f"{run.run_id}, {enum_name(run, 'status')}"
        if run.outcome:
            yield "outcome", run.outcome_reason or enum_name(run, "outcome")
        yield "asked for", f"{when(run.created_at)}{_ago(run.created_at)}"
        yield "took", _span(run.duration_seconds)
        yield "model version", run.model_version or "none"
    elif database.answers:
        yield "last training run", "none yet"
    for job in health.scheduled_jobs:
        yield "next training run", f"{when(job.next_run_time)} ({job.trigger})"
    if not health.scheduled_jobs:
        yield "next training run", "not scheduled by this server"
    if health.HasField("queue"):
        queue = health.queue
        yield "training runs", f"{queue.runs_pending} pending, {queue.runs_running} running"
        if queue.HasField("interactions_waiting"):
            yield "interactions waiting", f"about {queue.interactions_waiting:,}"


def _served(served: pb.ServedHealth) -> Iterator[tuple[str, object]]:
    if served.HasField("active_version"):
        yield "active", version_name(served.active_version)
        if served.HasField("active_since"):
            yield "active since", f"{when(served.active_since)}{_ago(served.active_since)}"
        if served.HasField("active_created_at"):
            made = served.active_created_at
            yield "trained or imported", f"{when(made)}{_ago(made)}"
    if not served.HasField("active_version") or served.serving_version != served.active_version:
        yield "in memory", version_name(served.serving_version)
    if served.refused_reason:
        yield "REFUSED", served.refused_reason
    if served.exploration == "off":
        yield "exploration", "off: what is not served is not learned, and cannot be compared"
    else:
        yield "exploration", served.exploration


def _ago(moment: Timestamp) -> str:
    seconds = (datetime.now(UTC) - moment.ToDatetime(UTC)).total_seconds()
    return f", {_span(seconds)} ago"


def _span(seconds: float) -> str:
    """Returns seconds in the largest unit of which there are two at least."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
