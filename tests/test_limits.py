"""Callers who ask for too much: nobody else waits for them, and what they may take is bounded."""

import asyncio
import contextlib
import gc
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import models_pb2, policy_pb2, policy_pb2_grpc
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_server.app import App
from recparams_server.contract.errors import (
    MOST_VIOLATIONS,
    ServiceError,
    Violations,
    store_unavailable,
)
from recparams_server.jobs.processes import Jobs
from recparams_server.observability import metrics, scrapes
from recparams_server.rpc import streams
from recparams_server.rpc.decoding import decoded, decoded_in_turns
from recparams_server.rpc.methods import METHODS as METHOD_POLICIES
from recparams_server.rpc.methods import MethodPolicy
from recparams_server.services import run_followers, system
from recparams_server.services.policy import PolicyService
from recparams_server.settings import Settings
from recparams_server.store import system as store_system
from recparams_server.store import tasks
from recparams_simulation.demo_server import free_port
from tests import observed
from tests.faults import SMALL, eventually, trigger
from tests.fuzzing import BYTES, FIXED32, FIXED64, METHODS, VARINT, field, unread, varint
from tests.support import ADMIN, Client, failure_of, in_process, logged, request


@pytest.fixture
def settings(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    return in_process(database_url, tmp_path, **{**SMALL, **getattr(request, "param", {})})


LARGEST = int(Settings.model_fields["max_message_bytes"].default)
LONGEST_HOLD = 0.05
"""Seconds; on a quiet machine it is below 0.01."""
TICK = 0.001
TRIES = 20
_FIXED = {
    FieldDescriptor.TYPE_DOUBLE: (FIXED64, bytes(8)),
    FieldDescriptor.TYPE_FLOAT: (FIXED32, bytes(4)),
}


def shapes(descriptor: Descriptor, size: int, depth: int = 4) -> Iterator[tuple[str, bytes]]:
    """The largest messages of a kind: each field again and again, at every depth, and at length."""
    strange = field(1000, VARINT, b"\x01")
    yield "strange fields", strange * (size // len(strange))
    for one in descriptor.fields:
        name = one.name
        if one.message_type is not None:
            empty = field(one.number, BYTES, b"")
            yield f"{name}: empty ones", empty * (size // len(empty))
            if depth:
                for inner, body in shapes(one.message_type, size - 16, depth - 1):
                    yield f"{name}.{inner}", field(one.number, BYTES, body)
                for inner, body in shapes(one.message_type, 32, 0):
                    many = field(one.number, BYTES, body)
                    yield f"{name}: many with {inner}", many * (size // len(many))
        elif one.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield f"{name}: long", field(one.number, BYTES, b"a" * (size - 16))
            empty = field(one.number, BYTES, b"")
            yield f"{name}: empty ones", empty * (size // len(empty))
        else:
            kind, value = _FIXED.get(one.type, (VARINT, b"\x01"))
            again = field(one.number, kind, value)
            yield f"{name}: again", again * (size // len(again))
            if one.is_repeated:
                for number in (1, 100):
                    body = varint(number) * (size - 16)
                    yield f"{name}: packed {number}", field(one.number, BYTES, body)


class HoldMeter:
    """Measures for how long something of this process, the server, holds its event loop.

    Where the loop is late for longer than this process computes, others have the processors. All
    threads count, unlike in benchmarks/loop_meter.py: one that keeps the interpreter holds it too.
    """

    longest = 0.0

    async def follow(self) -> None:
        """Measures until cancelled."""
        while True:
            due, computed = time.monotonic() + TICK, time.process_time()
            await asyncio.sleep(TICK)
            late, computing = time.monotonic() - due, time.process_time() - computed
            self.longest = max(self.longest, min(late, computing))


@contextlib.asynccontextmanager
async def held() -> AsyncIterator[HoldMeter]:
    """Measures for how long the event loop, the server's too, does nothing else at a time."""
    meter = HoldMeter()
    following = asyncio.create_task(meter.follow())
    await asyncio.sleep(0.01)
    try:
        yield meter
    finally:
        following.cancel()


async def send(client: Client, method: MethodDescriptor, message: bytes) -> grpc.StatusCode:
    """Calls with an encoded message and the admin's key; returns the status."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    call = client.channel.stream_stream(path)(iter([message]), metadata=ADMIN, timeout=2)
    try:
        async for _ in call:
            call.cancel()
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        pass
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.name))
async def test_the_largest_message_of_no_shape_holds_others_up(
    client: Client, method: MethodDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_process(*arguments: str, **options: Any) -> Any:
        raise store_unavailable()

    # Some of them ask for work: starting a process takes longer than any of this.
    monkeypatch.setattr(Jobs, "_spawn", no_process)
    found = {}
    limit = METHOD_POLICIES.get(method.name, MethodPolicy(None)).most_bytes
    sent = [*shapes(method.input_type, LARGEST), *shapes(method.input_type, limit)]
    for name, message in sent:
        # What others on the machine do differs from time to time; what the message does, does not.
        holds = []
        for _ in range(TRIES):
            async with held() as meter:
                await send(client, method, message)
            holds.append(meter.longest)
            if meter.longest < LONGEST_HOLD:
                break
        found[f"{name}, {len(message)} bytes"] = min(holds)
    assert max(found.values()) < LONGEST_HOLD, max(found, key=found.__getitem__)


def test_what_the_methods_take_is_received() -> None:
    assert max(policy.most_bytes for policy in METHOD_POLICIES.values()) <= LARGEST


async def test_a_full_batch_of_interactions_holds_others_up_briefly(client: Client) -> None:
    ask = client.recommendation.GetRecommendationParams
    tokens = [(await ask(request(f"u{n}"))).decision_token for n in range(100)]
    holds = []
    for attempt in range(3):
        full = pb.RecordInteractionsRequest(
            interactions=[
                pb.Interaction(
                    interaction_id=f"{attempt}-{n:060}",
                    user_id=f"u{n % 100}",
                    decision_token=tokens[n % 100],
                    reactions=[types.REACTION_LIKE, types.REACTION_SHARE],
                    completion_rate=0.5,
                )
                for n in range(1000)
            ]
        )
        async with held() as meter:
            answer = await client.recommendation.RecordInteractions(full)
        assert answer.recorded == 1000
        holds.append(meter.longest)
    assert min(holds) < LONGEST_HOLD


async def test_those_who_stop_watching_leave_no_garbage(client: Client) -> None:
    def watched() -> int:
        streams = (one for one in gc.get_objects() if isinstance(one, AsyncGeneratorType))
        code = PolicyService.WatchPolicy.__code__
        return sum(stream.ag_code is code for stream in streams)

    async def all_gone() -> bool:
        return not watched()

    gc.disable()
    try:
        stub = policy_pb2_grpc.PolicyServiceStub(client.channel)
        watches = [stub.WatchPolicy(policy_pb2.WatchPolicyRequest()) for _ in range(3)]
        for watch in watches:
            assert (await watch.read()).checksum
        assert watched() == len(watches)
        for watch in watches:
            watch.cancel()
        await eventually(all_gone)
    finally:
        gc.enable()


RECORD = METHOD_POLICIES["RecordInteractions"]


@given(
    st.lists(st.integers(0, 3000), max_size=40),
    st.sampled_from([b"", b"\x78\x05", b"\xfa\x7f\x03abc", b"\x7d1234", b"\x7912345678"]),
)
def test_a_message_in_pieces_is_the_same_as_whole(lengths: list[int], strange: bytes) -> None:
    entries = [
        pb.RecordInteractionsRequest(interactions=[pb.Interaction(user_id="u" * 7 * length)])
        for length in lengths
    ]
    message = strange.join([b"", *(one.SerializeToString() for one in entries), b""])
    whole = pb.RecordInteractionsRequest.FromString(message)
    assert decoded(pb.RecordInteractionsRequest, message, RECORD) == whole
    turns = decoded_in_turns(pb.RecordInteractionsRequest, message, RECORD)
    assert asyncio.run(turns) == whole


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\x0a\x00" * 500_000, "interactions: must have 1 to 1000 entries"),
        (b"\x78\x01" * 500_000, "interactions: must have 1 to 1000 entries"),
        (field(1, BYTES, bytes(70_000)), "interactions: entry 0 has more than 65536 bytes"),
        (bytes(1024 * 1024 + 1), "request: has 1048577 bytes, where a RecordInteractionsRequest"),
        (field(1, BYTES, bytes(60_000)) * 2 + b"\x0a\x7f", "request: is not a RecordInteractions"),
        (field(1, BYTES, bytes(60_000)) * 2 + b"\x0a\xff", "request: is not a RecordInteractions"),
        (field(1, BYTES, bytes(60_000)) * 2 + b"\x0b\x0c", "request: is not a RecordInteractions"),
        (b"\xff" * 100_000, "request: is not a RecordInteractions"),
    ],
)
def test_a_large_message_is_refused_before_it_is_parsed(message: bytes, said: str) -> None:
    with pytest.raises(ServiceError) as raised:
        decoded(pb.RecordInteractionsRequest, message, RECORD)
    assert raised.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.message.startswith(said)


def test_few_violations_are_kept_and_all_counted() -> None:
    violations = Violations()
    for n in range(10_000):
        violations.add(f"a[{n}]", "is wrong")
    assert len(violations) == 10_000
    assert len(violations._found) == MOST_VIOLATIONS
    assert violations.error().message == "a[0]: is wrong (and 9999 more)"


@pytest.mark.parametrize(
    ("service", "method", "message", "path"),
    [
        (
            "recommendation",
            "RecordInteractions",
            pb.RecordInteractionsRequest(
                interactions=[logged("i", "ada", *[types.REACTION_LIKE] * 33)]
            ),
            "interactions[0].reactions",
        ),
        (
            "training",
            "Evaluate",
            tpb.EvaluateRequest(policies=[epb.Policy()] * 17),
            "policies",
        ),
        (
            "training",
            "TriggerTraining",
            tpb.TriggerTrainingRequest(
                hyperparameters=tpb.Hyperparameters(
                    algorithm_parameters={f"p{n}": 1.0 for n in range(65)}
                )
            ),
            "hyperparameters.algorithm_parameters",
        ),
        (
            "training",
            "TriggerTraining",
            tpb.TriggerTrainingRequest(algorithm="q" * 65),
            "algorithm",
        ),
    ],
)
async def test_fields_have_limits(
    client: Client, service: str, method: str, message: Any, path: str
) -> None:
    call = getattr(getattr(client, service), method)
    failure = await failure_of(call(message, metadata=ADMIN))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(failure.violations) == [path]


WATCH_POLICY = b"/recparams.v1.PolicyService/WatchPolicy"


def until_closed(connection: socket.socket) -> None:
    """Reads what comes, and takes none of it for the streams, until the server ends it."""
    with contextlib.suppress(ConnectionError):
        while connection.recv(65536):
            pass


# Not less: the first is not given up before the last has come, on a busy machine either.
@pytest.mark.parametrize("settings", [{"watch_stall_seconds": 3}], indirect=True)
async def test_the_connection_of_one_who_takes_nothing_is_closed(app: App, client: Client) -> None:
    with await asyncio.to_thread(unread, app.port, WATCH_POLICY, 20) as connection:
        await eventually(lambda: _is(metrics.WATCHERS, 20))
        await asyncio.to_thread(until_closed, connection)
    await eventually(lambda: _is(metrics.WATCHERS, 0))
    # The connections of others are as they were.
    assert client.channel.get_state() is grpc.ChannelConnectivity.READY
    await client.recommendation.GetRecommendationParams(request())


async def _is(gauge: Any, value: float) -> bool:
    return bool(gauge._value.get() == value)


@pytest.mark.parametrize(
    "settings", [{"watch_stall_seconds": 30, "max_streams_per_caller": 1000}], indirect=True
)
async def test_what_nobody_takes_is_copied_for_few(
    app: App, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    large = streams.LARGE_BYTES + 1
    monkeypatch.setattr(
        PolicyService, "_encoded", lambda *_: bytes([0xA2, 0x06]) + varint(large) + bytes(large)
    )
    joined = streams.joined

    def counted(parts: Any) -> bytes:
        sizes.append(sum(map(len, parts)))
        return joined(parts)

    monkeypatch.setattr(streams, "joined", counted)
    with await asyncio.to_thread(unread, app.port, WATCH_POLICY, 100):
        await eventually(lambda: _is(metrics.WATCHERS, 100))
        await asyncio.sleep(0.5)
        assert len(sizes) == streams.MOST_LARGE_OF_CALLER


@pytest.mark.parametrize(
    ("settings", "most"),
    [({"max_streams_per_caller": 3}, "this caller has 3"), ({"max_streams": 3}, "3 streams")],
    indirect=["settings"],
)
async def test_streams_have_a_number(app: App, client: Client, most: str) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(client.channel)  # type: ignore[no-untyped-call]
    watches = [stub.WatchPolicy(policy_pb2.WatchPolicyRequest()) for _ in range(3)]
    for watch in watches:
        await watch.read()
    failure = await failure_of(stub.WatchPolicy(policy_pb2.WatchPolicyRequest()).read())
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason == "TOO_MANY_STREAMS"
    assert failure.message.startswith(most)
    assert failure.retry_seconds
    watches[0].cancel()
    await eventually(lambda: _is(metrics.WATCHERS, 2))
    assert (await stub.WatchPolicy(policy_pb2.WatchPolicyRequest()).read()).checksum


async def test_a_run_is_read_once_for_all_who_watch_it(
    client: Client, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, marks = [], []
    fetch, mark = tasks.fetch, tasks.fail_dead_runs

    async def counted(store: Any, run_id: int) -> Any:
        reads.append(run_id)
        return await fetch(store, run_id)

    async def marked(store: Any) -> None:
        marks.append(store)
        await mark(store)

    await db.execute("SELECT pg_advisory_lock_shared(7270001)")
    run_id = await trigger(client)
    watching = [
        client.training.WatchTrainingRun(tpb.WatchTrainingRunRequest(run_id=run_id), metadata=ADMIN)
        for _ in range(100)
    ]
    for watch in watching:
        assert (await watch.read()).run.run_id == run_id
    monkeypatch.setattr(tasks, "fetch", counted)
    monkeypatch.setattr(tasks, "fail_dead_runs", marked)
    began = time.monotonic()
    await asyncio.sleep(1.5)
    assert 1 <= len(reads) <= 1 + (time.monotonic() - began) / run_followers.LOOK_SECONDS
    assert not marks
    await db.execute("SELECT pg_advisory_unlock_all()")
    ends = await asyncio.gather(*(last(watch) for watch in watching))
    assert {end.run.status for end in ends} == {tpb.TRAINING_RUN_STATUS_COMPLETED}


async def last(watch: Any) -> Any:
    """The last message of a stream."""
    found = None
    while message := await watch.read():
        found = message
    return found


async def test_health_asks_the_database_a_few_times_a_second(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    newest = store_system.last_run

    async def counted(connection: Any) -> Any:
        asked.append(connection)
        return await newest(connection)

    monkeypatch.setattr(store_system, "last_run", counted)
    # On a busy machine, none may answer in time.
    monkeypatch.setattr(system, "DATABASE_SECONDS", 60.0)
    began = time.monotonic()
    while time.monotonic() < began + 1.5 or len(asked) < 6:
        calls = (client.system.GetSystemHealth(spb.GetSystemHealthRequest()) for _ in range(64))
        assert all(answer.database.answers for answer in await asyncio.gather(*calls))
    assert len(asked) <= 1 + system.LOOKS_PER_SECOND * (1 + time.monotonic() - began)


@pytest.mark.parametrize("settings", [{"max_calls_per_second": 20}], indirect=True)
async def test_wrong_keys_have_a_rate(client: Client) -> None:
    codes = Counter[grpc.StatusCode]()
    began = time.monotonic()
    for _ in range(200):
        call = client.models.ListModels(
            models_pb2.ListModelsRequest(), metadata=(("x-admin-key", "wrong"),)
        )
        codes[(await failure_of(call)).code] += 1
    seconds = time.monotonic() - began
    assert set(codes) == {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert codes[grpc.StatusCode.PERMISSION_DENIED] <= 20 * (1 + seconds) + 1
    # Others at the same address still get in with the right one.
    await client.models.ListModels(models_pb2.ListModelsRequest(), metadata=ADMIN)


@pytest.mark.parametrize(
    ("settings", "other"),
    [({"max_jobs_of_a_kind": 1}, True), ({"max_jobs": 1}, False)],
    indirect=["settings"],
)
async def test_jobs_have_a_number(app: App, client: Client, other: bool) -> None:
    jobs = app._runtime.require_jobs()
    blocked, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[models_pb2.ImportModelRequest]:
        yield models_pb2.ImportModelRequest(chunk=b"{")
        blocked.set()
        await go_on.wait()

    first = asyncio.ensure_future(client.models.ImportModel(slow(), metadata=ADMIN))
    await blocked.wait()
    await eventually(lambda: _runs(jobs, "import"))

    async def again() -> Any:
        sent = iter([models_pb2.ImportModelRequest(chunk=b"[1]")])
        return await failure_of(client.models.ImportModel(sent, metadata=ADMIN))

    failure = await again()
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failure.reason, failure.retry_seconds) == ("TOO_MANY_JOBS", 10.0)
    assert jobs.running()["import"] == 1
    evaluation = client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
    if other:
        await evaluation
    else:
        assert (await failure_of(evaluation)).reason == "TOO_MANY_JOBS"
        # What the server does by itself goes on.
        assert (await jobs.run("none", reserved=True))[0] == 2
    go_on.set()
    assert (await failure_of(first)).code is grpc.StatusCode.INVALID_ARGUMENT
    assert (await again()).code is grpc.StatusCode.INVALID_ARGUMENT


async def _runs(jobs: Jobs, kind: str) -> bool:
    return bool(jobs.running()[kind])


async def test_an_export_that_is_broken_off_gives_its_place_back(app: App, client: Client) -> None:
    sent = iter([models_pb2.ImportModelRequest(chunk=b'{"q_table": {}}')])
    jobs = app._runtime.require_jobs()
    version = (await client.models.ImportModel(sent, metadata=ADMIN)).model.version
    for _ in range(6):
        wanted = models_pb2.ExportModelRequest(version=version)
        call = client.models.ExportModel(wanted, metadata=ADMIN)
        await eventually(lambda: _runs(jobs, "export"))
        call.cancel()
        await eventually(lambda: _free(jobs))


async def _free(jobs: Jobs) -> bool:
    return not jobs._taken.total()


def test_a_connection_to_the_metrics_that_says_nothing_takes_no_thread() -> None:
    port = free_port("127.0.0.1", 0)
    scrapes.start(port, ["127.0.0.1"])
    threads = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    try:
        for said in (b"GET /metrics HTT", b"x" * 100_000, b"no request\r\n\r\n", b"\r\n\r\n"):
            silent[0].close()
            del silent[0]
            silent[-1].sendall(said)
            silent.append(socket.create_connection(("127.0.0.1", port)))
            assert "python_info" in observed.scrape(port)
        assert threading.active_count() <= threads
        # The oldest ones had to go.
        silent[0].settimeout(20)
        assert silent[0].recv(1) == b""
    finally:
        for one in silent:
            one.close()
    with pytest.raises(OSError, match="in use"):
        scrapes.start(port, ["127.0.0.1"])
