"""Stalls: the longest time in which a server answers nobody, whatever else it is asked to do.

`python -m benchmarks.stalls` is the client, in a process of its own.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import psutil
import uvloop

from benchmarks import load
from benchmarks.database import make_database, postgres
from benchmarks.measure import Effort, cores
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import (
    ADMIN_KEY,
    COLLECTED,
    DECIDE,
    EMPTY,
    LOOK,
    STALLS,
    request,
    running,
)
from benchmarks.swap import store
from benchmarks.synthetic import random_model
from recparams.v1 import policy_pb2, policy_pb2_grpc, recommendation_pb2_grpc, training_pb2_grpc
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams_server.store import activations

LONGEST = 0.005
"""Seconds that a stall may last."""
CONNECTIONS = 4
RECORDS = 1000
LARGE = 4 * 1024 * 1024 - 1024
ADMIN = (("x-admin-key", ADMIN_KEY),)
_RECORD = "/recparams.v1.RecommendationService/RecordInteractions"
OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))


@dataclass(frozen=True)
class Case:
    """What a server did meanwhile.

    Attributes:
        what: in words.
        wall: the longest stall, in seconds.
        cpu: the same in processor time of the loop's thread.
    """

    what: str
    wall: float
    cpu: float


@dataclass(frozen=True)
class Found:
    """All that was found.

    Attributes:
        cases: what the server did meanwhile.
        looks: looks through everything for garbage in all of them.
        look: seconds of processor time that one takes.
    """

    cases: list[Case]
    looks: int
    look: float


def run(effort: Effort, folder: Path) -> Section:
    """Stalls case by case, then the slowest decisions at half of what the server can do."""
    server_core, client_core = cores()
    settings = {**effort.settings, "max_streams_per_caller": 2000, "settling_seconds": 0}
    with tempfile.TemporaryDirectory() as data, postgres() as database:
        url = make_database(database, "stalls", effort.of(200_000, 2_000))
        rng = np.random.default_rng(3)
        model = random_model(rng, effort.space.n_states, effort.space, effort.smoothing)
        both = store(url, model), store(url, model)
        with running("real", server_core, url, data, settings=settings) as (port, server):
            seconds, watchers = effort.of(5, 1), effort.of(1000, 20)
            found = _client(port, client_core, url, both, seconds, watchers)
            half = _at_half(effort, port, client_core, server)
    return _section(found, half)


def _at_half(
    effort: Effort, port: int, core: int, server: psutil.Process
) -> tuple[load.Load, load.Load] | None:
    """Decisions at half the rate at which the server can make them, and empty calls at that rate.

    None without h2load.
    """
    if load.H2LOAD is None:
        return None
    call = partial(load.h2load, port, connections=CONNECTIONS, core=core, server=server)
    asked = request(5).SerializeToString()
    most = call(DECIDE, asked, calls=effort.of(8_000, 200), concurrency=16).calls_per_second
    decisions, empty = (
        call(path, body, calls=effort.of(30_000, 400), concurrency=100, rate=most / 2)
        for path, body in ((DECIDE, asked), (EMPTY, b""))
    )
    return decisions, empty


def _section(found: Found, half: tuple[load.Load, load.Load] | None) -> Section:
    cases = found.cases
    above = [case for case in cases if case.cpu > LONGEST]
    goals = [
        Goal(
            "longest stall of the event loop, ms of its own processor time",
            "1 ms",
            1e3 * max(case.cpu for case in cases),
            1e3 * LONGEST,
            at_most=True,
            shortfall=", ".join(f"{case.what} {1e3 * case.cpu:.1f} ms" for case in above),
        )
    ]
    if half is None:
        said = "h2load is not installed (Debian: nghttp2-client): decisions were not measured."
    else:
        decisions, empty = half
        said = (
            f"*At half of what the server can do*: {decisions.calls_per_second:,.0f} a second "
            f"over {CONNECTIONS} connections, asked on time whatever became of those before "
            f"(`h2load --rps`). Decisions: {_times(decisions)}. Empty calls at the same rate: "
            f"{_times(empty)}, so p99.9 is {empty.p999 / empty.p50:.1f} times p50 without anything "
            "of ours."
        )
        goals.append(
            Goal(
                "p99.9 of decisions at half of saturation",
                "their p50",
                decisions.p999 / decisions.p50,
                3,
                at_most=True,
                shortfall=f"{1e3 * decisions.p999:.2f} ms against {1e3 * decisions.p50:.2f} ms; "
                f"empty calls {1e3 * empty.p999:.2f} against {1e3 * empty.p50:.2f}",
            )
        )
    return Section(
        "Stalls",
        [
            "The longest time in which the event loop of a server ran one thing after another "
            "without a look at what else had come, by a timer of 1 ms within it. The server is "
            "alone on its core, but for what it starts itself; *processor time* is its thread's "
            "own, without what the kernel gave to others.",
            Table(
                ("meanwhile", "longest stall", "of processor time"),
                [
                    (case.what, f"{1e3 * case.wall:.1f} ms", f"{1e3 * case.cpu:.1f} ms")
                    for case in cases
                ],
            ),
            f"Garbage is collected in portions. A look through everything takes "
            f"{1e3 * found.look:.0f} ms with the watchers; it comes when twice as much memory is "
            f"in use as after the last one, and came {found.looks} times in all of these cases.",
            said,
        ],
        goals=goals,
    )


def _times(one: load.Load) -> str:
    return f"p50 {1e3 * one.p50:.2f} ms, p99 {1e3 * one.p99:.2f} ms, p99.9 {1e3 * one.p999:.2f} ms"


def _client(
    port: int, core: int, url: str, versions: tuple[int, int], seconds: int, watchers: int
) -> Found:
    command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.stalls"]
    command += [str(port), url, *map(str, (*versions, seconds, watchers))]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=300 + 20 * seconds
    )
    cases, looks, look = json.loads(done.stdout)
    return Found([Case(**case) for case in cases], looks, look)


class _Client:
    """What is done to a server, each for so many seconds."""

    def __init__(self, channels: list[grpc.aio.Channel], db: Any, seconds: int) -> None:
        self._channels = channels
        self._db = db
        self._seconds = seconds
        self._numbers = count()
        self._watching: list[asyncio.Task[None]] = []

    async def call(self, path: str) -> bytes:
        """Calls a method that takes nothing."""
        answer: bytes = await self._channels[0].unary_unary(path)(b"")
        return answer

    async def case(self, what: str, work: Callable[[], Awaitable[str | None]]) -> Case:
        """Returns the longest stalls while something is done, which may say how much."""
        await self.call(STALLS)
        said = await work()
        await asyncio.sleep(0.1)
        return Case(f"{what}{said or ''}", **json.loads(await self.call(STALLS)))

    async def nothing(self) -> None:
        """Lets the server alone."""
        await asyncio.sleep(self._seconds)

    async def swap(self, versions: tuple[int, int]) -> None:
        """Activates one of two versions every half second."""
        for turn in range(2 * self._seconds):
            async with self._db.transaction():
                await activations.activate(self._db, versions[turn % 2], 0.0, "benchmark")
            await asyncio.sleep(0.5)

    async def train(self) -> None:
        """Trains twice; the first run starts the process that the second one is forked from."""
        stub = training_pb2_grpc.TrainingServiceStub(self._channels[0])
        for _ in range(2):
            asked = tpb.TriggerTrainingRequest(mode=tpb.TRAINING_MODE_REBUILD, days_back=60)
            answer = await stub.TriggerTraining(asked, metadata=ADMIN)
            watched = tpb.WatchTrainingRunRequest(run_id=answer.run.run_id)
            async for _ in stub.WatchTrainingRun(watched, metadata=ADMIN):
                pass

    async def send_large(self) -> None:
        """Sends messages of 4 MiB, which are refused."""
        call = self._channels[0].unary_unary(_RECORD)
        for _ in range(4 * self._seconds):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call(b"\x0a\x00" * (LARGE // 2))

    async def record(self) -> str:
        """Records 1,000 interactions at a time, four times at once. Returns how many a second."""
        stub = recommendation_pb2_grpc.RecommendationServiceStub(self._channels[0])
        asked = [request(person) for person in range(250)]
        batch = pb.BatchGetRecommendationParamsRequest(requests=asked)
        answers = (await stub.BatchGetRecommendationParams(batch)).responses
        tokens = [answer.decision_token for answer in answers]
        # Made once, and given ids of its own each time: the client takes next to nothing.
        message = pb.RecordInteractionsRequest(
            interactions=[
                pb.Interaction(
                    interaction_id=f"stall-########-{n}",
                    user_id=asked[n % len(asked)].user_id,
                    decision_token=tokens[n % len(asked)],
                    reactions=[1],
                )
                for n in range(RECORDS)
            ]
        ).SerializeToString()
        ends = asyncio.get_running_loop().time() + self._seconds
        sent = 0

        async def caller(channel: grpc.aio.Channel) -> None:
            nonlocal sent
            call = channel.unary_unary(_RECORD)
            while asyncio.get_running_loop().time() < ends:
                number = f"{next(self._numbers):08d}".encode()
                await call(message.replace(b"########", number), timeout=60)
                sent += 1

        await asyncio.gather(*map(caller, self._channels))
        return f", {sent / self._seconds:.0f} a second"

    async def collect(self) -> str:
        """Makes decisions while the server collects garbage. Returns how often it did so."""
        asked = request(5).SerializeToString()
        before, _ = await self.collected()
        ends = asyncio.get_running_loop().time() + self._seconds

        async def caller(channel: grpc.aio.Channel) -> None:
            call = channel.unary_unary(DECIDE)
            while asyncio.get_running_loop().time() < ends:
                await call(asked)

        await asyncio.gather(*map(caller, 4 * self._channels))
        after, _ = await self.collected()
        return f", decisions and {after - before} whole garbage collections"

    async def collected(self) -> tuple[int, int]:
        """Returns whole garbage collections and looks through everything since the start."""
        collections, looks = json.loads(await self.call(COLLECTED))
        return int(collections), int(looks)

    async def come(self, watchers: int) -> None:
        """Has so many more watch the policy, and returns when all of them have it."""

        async def watch(number: int, has_it: asyncio.Event) -> None:
            channel = self._channels[number % len(self._channels)]
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            async for _ in stub.WatchPolicy(policy_pb2.WatchPolicyRequest()):
                has_it.set()

        events = [asyncio.Event() for _ in range(watchers)]
        self._watching += [asyncio.create_task(watch(*one)) for one in enumerate(events)]
        await asyncio.gather(*(event.wait() for event in events))

    async def go(self) -> None:
        """Has all who watch go."""
        for task in self._watching:
            task.cancel()
        await asyncio.wait(self._watching)


async def _cases(
    port: int, url: str, versions: tuple[int, int], seconds: int, watchers: int
) -> Found:
    db = await asyncpg.connect(url)
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
            )
            for _ in range(CONNECTIONS)
        ]
        client = _Client(channels, db, seconds)
        found = [
            await client.case("nothing", client.nothing),
            await client.case("a new version every half second", lambda: client.swap(versions)),
            await client.case("two training runs", client.train),
            await client.case("messages of 4 MiB, refused", client.send_large),
            await client.case(f"{RECORDS:,} interactions a message", client.record),
        ]

        many = f"{watchers:,} watchers"
        found += [
            await client.case(f"{many} come", lambda: client.come(watchers)),
            await client.case(f"{many}, new versions", lambda: client.swap(versions)),
            await client.case(many, client.collect),
        ]
        look = json.loads(await client.call(LOOK))
        found.append(await client.case(f"{many} go", client.go))
        _, looks = await client.collected()
    await db.close()
    return Found(found, looks, look)


if __name__ == "__main__":
    port, url, first, second, seconds, watchers = sys.argv[1:]
    both = int(first), int(second)
    found = uvloop.run(_cases(int(port), url, both, int(seconds), int(watchers)))
    json.dump([[asdict(case) for case in found.cases], found.looks, found.look], sys.stdout)
