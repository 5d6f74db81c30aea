"""Callers who ask for too much: nobody else waits for them, and what they may take is bounded."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from server.contract.errors import MOST_VIOLATIONS, ServiceError, Violations, store_unavailable
from server.jobs.processes import Jobs
from server.rpc.decoding import decoded, decoded_in_turns
from server.rpc.methods import METHODS as METHOD_POLICIES
from server.rpc.methods import MethodPolicy
from tests.fuzzing import BYTES, FIXED32, FIXED64, METHODS, VARINT, field, varint
from tests.support import ADMIN, Client, failure_of, logged, request

LARGEST = 4 * 1024 * 1024 - 1024
LONGEST_HOLD = 0.05
"""Seconds; on a quiet machine it is below 0.01."""
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


@contextlib.asynccontextmanager
async def held() -> AsyncIterator[list[float]]:
    """Measures for how long the event loop, the server's too, does nothing else at a time."""
    longest = [0.0]

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest[0] = max(longest[0], time.perf_counter() - began - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    longest[0] = 0.0
    try:
        yield longest
    finally:
        ticking.cancel()


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
        for _ in range(5):
            async with held() as longest:
                await send(client, method, message)
            holds.append(longest[0])
            if longest[0] < LONGEST_HOLD:
                break
        found[f"{name}, {len(message)} bytes"] = min(holds)
    assert max(found.values()) < LONGEST_HOLD, max(found, key=found.__getitem__)


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
        async with held() as longest:
            answer = await client.recommendation.RecordInteractions(full)
        assert answer.recorded == 1000
        holds.append(longest[0])
    assert min(holds) < LONGEST_HOLD


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
    violations, other = Violations(), Violations()
    for n in range(80):
        violations.add(f"a[{n}]", "is wrong")
        other.add(f"b[{n}]", "is wrong")
    for _ in range(10_000):
        violations.extend(other)
    assert len(violations._found) == MOST_VIOLATIONS
    assert violations.error().message == "a[0]: is wrong (and 800079 more)"


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
