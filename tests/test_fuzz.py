"""Hostile callers: whatever bytes come in, the server answers properly and goes on.

Every method of every service is called, as its descriptor has it. `make fuzz` does the same for
longer, with another seed each time.
"""

import asyncio
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from recparams.v1 import models_pb2, rollout_pb2
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.state import StateSpace
from recparams_server.jobs.requests import RunRequest
from recparams_server.rpc.methods import Kind, method_policy
from recparams_server.settings import Settings
from recparams_server.settings.callers import Role
from recparams_server.store import tasks, training
from recparams_server.store.locks import TRAINER_LOCK
from tests import fuzzing
from tests.conftest import TEMPLATE
from tests.fuzzing import LIBRARY, METHODS, Answer, Known, kind_of
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    ROOT,
    ServerProcess,
    connect,
    failure_of,
    logged,
    record,
    request,
    wait_serving,
)
from tests.support import train as train_model

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
ROUNDS = 10**9 if MINUTES else 8
SECONDS = 60.0 * MINUTES / len(METHODS) if MINUTES else 0.45
TOKEN_KEY = "a-token-key-that-no-answer-may-have-in-it"
LARGEST = int(Settings.model_fields["max_message_bytes"].default)
NOT_TEXT = b"-is-not-text"
MOST_ANSWERS = 5
PASSWORD = "no-answer-may-have-this-password"

PROPER = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
}
DENIED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
UNDECODABLE = re.compile(
    r"Unexpected <class 'google\.protobuf\.message\.DecodeError'>: Error parsing message with type "
    r"'grpc\.[\w.]+': [\w -]+"
)
"""What gRPC's Python server tells of bytes that are no message, with the status UNKNOWN."""
LIBRARY_ERROR = re.compile(r"Unexpected \[\w+\] raised by servicer method \[/grpc\.")
TOO_MUCH = re.compile(
    r"received metadata size exceeds (soft|hard) limit"
    r"|(SERVER: Received|Decompressed) message larger than max"
)
"""What gRPC tells with RESOURCE_EXHAUSTED before any handler is asked."""
SECRET = re.compile(f"postgresql:|{re.escape(str(ROOT))}|{ADMIN_KEY}|{TOKEN_KEY}|{PASSWORD}")
TELLTALE = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|asyncpg|Exception\b|[a-z]Error\b"
    rf"|\bSELECT\b|\bINSERT INTO\b|\bUPDATE \w+ SET\b|{SECRET.pattern}"
)
TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
"""


@dataclass
class Target:
    """A server under fire, its database, and what its callers know."""

    server: ServerProcess
    channel: grpc.Channel
    runner: asyncio.Runner
    db: asyncpg.Connection
    digest_query: str
    known: Known
    stored: str = ""
    refused: int = 0
    answered: int = 0

    def digest(self) -> str:
        """Of everything that is stored."""
        return str(self.runner.run(self.db.fetch(self.digest_query)))

    def serves(self) -> bool:
        """Whether the server lives and says that it serves."""
        stub = health_pb2_grpc.HealthStub(self.channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        lives = self.server.process.poll() is None
        return lives and answer.status == health_pb2.HealthCheckResponse.SERVING


async def _prepare(server: ServerProcess, url: str) -> tuple[asyncpg.Connection, str, Known]:
    """A served model and a decision to start from; then nothing is trained any more."""
    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, *(logged(f"i{i}", f"user-{i % 9}") for i in range(60)))
        run = await train_model(client)
        assert run.model_version == 1, run
        decision = await client.recommendation.GetRecommendationParams(request("ada"))
    db = await asyncpg.connect(url)
    # A run that seems to be under way: others are refused, and cost no process.
    await db.execute("SELECT pg_advisory_lock($1)", TRAINER_LOCK)
    wanted = RunRequest(
        rebuild=False,
        days_back=7,
        min_interactions_per_user=1,
        hyperparameters=Hyperparameters(),
        as_of=datetime.now(UTC),
        activate=True,
    )
    await training.begin(db, await tasks.create(db, "under way", wanted.to_dict()))
    digests = [
        f"SELECT '{table}', count(*), sum(hashtextextended(t::text, 0)) FROM {table} AS t"
        for (table,) in await db.fetch(TABLES)
    ]
    return db, " UNION ALL ".join(digests), Known(decision.decision_token, int(time.time()))


@pytest.fixture(scope="module")
def target(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server process with a model, all of whose RPCs have something to work on."""
    runner = asyncio.Runner()
    name = f"fuzz_{uuid.uuid4().hex[:12]}"
    admin = runner.run(asyncpg.connect(postgres.get_uri()))
    runner.run(admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    url = postgres.get_uri(database=name)
    folder = tmp_path_factory.mktemp("fuzz")
    server = ServerProcess(
        # The embedded Postgres asks for no password, and ignores this one.
        f"{url}{'&' if '?' in url else '?'}password={PASSWORD}",
        folder / "log",
        data_dir=folder,
        bins=2,
        settling_seconds=0,
        min_interactions_per_user=1,
        token_key=TOKEN_KEY,
        watch_seconds=3600,
        reload_poll_seconds=3600,
    )
    with grpc.insecure_channel(server.target) as channel:
        try:
            db, digest_query, known = runner.run(_prepare(server, url))
            yield Target(server, channel, runner, db, digest_query, known)
            runner.run(db.close())
        finally:
            server.kill()
            runner.run(admin.execute(f"DROP DATABASE {name} WITH (FORCE)"))
            runner.run(admin.close())
            runner.close()


ODD_METADATA: Any = st.lists(
    st.tuples(
        st.sampled_from(["x-request-id", "x-api-key", "authorization", "grpc-status", "a", "b-c"]),
        st.text("!#$%&'\"*+ \\;<>{}09azAZ", max_size=60) | st.just("z" * 3000),
    )
    | st.tuples(st.sampled_from(["trace-bin", "x-admin-key-bin"]), st.binary(max_size=60)),
    max_size=3,
)
RIGHT: Any = (ADMIN, (("x-admin-key", "wrong"), *ADMIN))
WRONG: Any = (
    (),
    (("x-admin-key", ""),),
    (("x-admin-key", ADMIN_KEY[:-1]),),
    (("x-admin-key", ADMIN_KEY.upper()),),
    (*ADMIN, ("x-admin-key", "x" * 3000)),
)


@dataclass(frozen=True)
class Attack:
    """Raw messages, metadata, and whether the right key is among them."""

    requests: list[bytes]
    metadata: tuple[tuple[str, str | bytes], ...]
    has_key: bool

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis shows it: whole, it may be too long to be of use."""
        shown = [f"{len(one)} bytes: {one[:400].hex()}" for one in self.requests]
        printer.text(f"Attack({shown}, {self.metadata}, {self.has_key})")

    def is_too_much(self) -> bool:
        """Whether gRPC may refuse it before any handler is asked."""
        metadata = sum(len(key) + len(value) for key, value in self.metadata)
        return metadata > 2000 or max(map(len, self.requests), default=0) > LARGEST


def wrong(answer: Answer, method: MethodDescriptor, attack: Attack) -> str:
    """What is wrong with an answer; empty where nothing is."""
    told = answer.said
    if attack.is_too_much() and answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "" if TOO_MUCH.match(told) else "refused for another reason than its size"
    of_library = method.containing_service.full_name in LIBRARY
    needs_key = not of_library and method_policy(method).role in (Role.TRAIN, Role.ADMINISTER)
    if needs_key and not attack.has_key and answer.code not in DENIED:
        return "let in without the key"
    if of_library:
        if answer.code == grpc.StatusCode.UNKNOWN and UNDECODABLE.fullmatch(told):
            return ""
        # gRPC's asynchronous health servicer has no List.
        if answer.code == grpc.StatusCode.UNIMPLEMENTED and method.name == "List":
            return ""
    if answer.code not in PROPER:
        return "not a status for callers"
    leak = TELLTALE.search(told) or SECRET.search("".join(map(repr, answer.messages)))
    return f"tells {leak[0]!r}" if leak else ""


@st.composite
def attacks(draw: fuzzing.Draw, method: MethodDescriptor, known: Known) -> Attack:
    """A hostile call of a method."""
    message = fuzzing.messages(method.input_type, known)
    requests = draw(st.lists(message, max_size=4)) if method.client_streaming else [draw(message)]
    has_key = draw(st.integers(0, 3)) > 0
    key = draw(st.sampled_from(RIGHT if has_key else WRONG))
    return Attack(requests, (*draw(ODD_METADATA), *key), has_key)


def fire(target: Target, method: MethodDescriptor, attack: Attack) -> None:
    """Makes a call, and says what must hold of it."""
    endless = kind_of(method) is Kind.ENDLESS
    # What a refused call left is what the next one finds.
    before = target.stored or target.digest()
    answer = fuzzing.call(
        target.channel,
        method,
        attack.requests,
        attack.metadata,
        seconds=0.3 if endless else 30.0,
        most_answers=MOST_ANSWERS,
    )
    cut_off = answer.code == grpc.StatusCode.CANCELLED and len(answer.messages) == MOST_ANSWERS
    cut_off |= endless and answer.code == grpc.StatusCode.DEADLINE_EXCEEDED
    problem = "" if cut_off else wrong(answer, method, attack)
    assert not problem, f"{problem}: {answer.code} {answer.said[:600]}"
    assert answer.seconds < (20.0 if kind_of(method) is Kind.LONG else 5.0)
    if answer.code == grpc.StatusCode.OK or cut_off:
        target.answered += 1
        target.stored = ""
    else:
        target.refused += 1
        target.stored = target.digest()
        assert target.stored == before, f"refused, yet something changed: {answer.said[:300]}"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
@pytest.mark.timeout(0 if MINUTES else 60)
def test_no_call_harms_the_server(target: Target, method: MethodDescriptor) -> None:
    examples = 4 if kind_of(method) in (Kind.LONG, Kind.ENDLESS) else 30
    until = time.monotonic() + SECONDS
    for round_number in range(ROUNDS):

        @seed(SEED + round_number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(attacks(method, target.known))
        def hold(attack: Attack) -> None:
            fire(target, method, attack)

        hold()
        if time.monotonic() > until:
            break
    assert target.serves()


def test_every_service_is_under_fire(target: Target) -> None:
    ask = ServerReflectionStub(target.channel).ServerReflectionInfo
    (answer,) = ask(iter([ServerReflectionRequest(list_services="")]), timeout=10)
    listed = {service.name for service in answer.list_services_response.service}
    assert listed == {method.containing_service.full_name for method in METHODS}


def test_what_a_caller_wrote_is_not_quoted_at_length(target: Target) -> None:
    """Clients refuse an answer whose metadata are too large, and would not see why."""
    long = "z" * 70_000
    step = rollout_pb2.SetRolloutRequest(version=1, step=long).SerializeToString()
    calls = [("RolloutService", "SetRollout", step)]
    for file in (
        {"q_table": {long: {}}},
        {"q_table": {}, "space": {**StateSpace(2).to_dict(), "moods": ["\ud800"]}},
    ):
        chunk = models_pb2.ImportModelRequest(chunk=json.dumps(file).encode())
        calls.append(("ModelService", "ImportModel", chunk.SerializeToString()))
    for service, name, message in calls:
        method = next(
            one for one in METHODS if (one.containing_service.name, one.name) == (service, name)
        )
        answer = fuzzing.call(target.channel, method, [message], ADMIN, 20.0)
        assert answer.code == grpc.StatusCode.INVALID_ARGUMENT, answer.said[:600]
        assert len(answer.said) < 2500


def test_a_message_is_refused_that_is_small_until_it_is_unpacked(target: Target) -> None:
    ask = target.channel.unary_unary(
        "/recparams.v1.RecommendationService/GetRecommendationParams",
        request_serializer=bytes,
    )
    with pytest.raises(grpc.RpcError) as raised:
        ask(bytes(8 * 1024 * 1024), compression=grpc.Compression.Gzip, timeout=20)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "message larger than max" in raised.value.details()
    assert target.serves()


ODD_HEADERS = [
    [(b"x-admin-key", b"\xff" + NOT_TEXT)],
    [(b"x-api-key", b"\xc3\x28" + NOT_TEXT), (b"x-request-id", b"\x80" + NOT_TEXT)],
    [(b"x-request-id", b"a\x01\r\n{}\x1b[2J")],
    [(b"trace-bin", b"this is no base64!")],
    [(b"grpc-timeout", b"-5q")],
    [(b"grpc-encoding", b"nothing that exists")],
]


@pytest.mark.parametrize("metadata", ODD_HEADERS, ids=lambda metadata: repr(metadata[0])[:30])
def test_metadata_that_are_no_text(target: Target, metadata: list[tuple[bytes, bytes]]) -> None:
    path = b"/recparams.v1.ModelService/ListModels"
    answer = fuzzing.call_by_hand(target.server.port, path, metadata)
    assert b"grpc-status" in answer
    assert target.serves()
    # Metadata may be a key, or pass for lines of the log: none of it is there as it came.
    text = target.server.log.read_text()
    assert NOT_TEXT.decode() not in text
    assert "\x1b" not in text
    assert all(isinstance(event, dict) for event in target.server.events())


async def test_a_token_of_long_ago_is_refused(start_server: Any) -> None:
    server = start_server(bins=2, token_max_age_days=1e-6)
    async with connect(server.target) as client:
        await wait_serving(client)
        decision = await client.recommendation.GetRecommendationParams(request("ada"))
        await asyncio.sleep(0.2)
        late = pb.Interaction(
            interaction_id="late",
            user_id="ada",
            decision_token=decision.decision_token,
            reactions=[types.REACTION_LIKE],
        )
        call = client.recommendation.RecordInteractions(
            pb.RecordInteractionsRequest(interactions=[late])
        )
        failure = await failure_of(call)
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == ["interactions[0].decision_token"]


def test_a_path_that_is_no_text(start_server: Any) -> None:
    """It is refused, and that is all."""
    server = start_server(bins=2)
    answer = fuzzing.call_by_hand(server.port, b"/a/\xff", [])
    assert b"grpc-status" in answer
    with grpc.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=60).status


def test_the_log_of_it_holds_no_error(target: Target) -> None:
    """Of our own; and both refused and answered calls were many."""
    assert target.answered > 50 and target.refused > 200, (target.answered, target.refused)
    text = target.server.log.read_text()
    errors = [
        event
        for event in target.server.events()
        if event["level"] == "error" and not LIBRARY_ERROR.match(event["event"])
    ]
    assert not errors, json.dumps(errors[0], indent=1)
    assert "Traceback" not in text
    for secret in (ADMIN_KEY, TOKEN_KEY, PASSWORD):
        assert secret not in text
