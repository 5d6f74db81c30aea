"""Recording: interactions a second that one server and its Postgres store.

`python -m benchmarks.recording` is the caller, in a process of its own.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import psutil

from benchmarks.database import WORK_SECONDS, make_database, postgres
from benchmarks.measure import Effort, cores
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import request, running
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import recommendation_pb2_grpc as grpc_pb
from recparams.v1 import types_pb2 as types

BATCH = 500
"""Interactions of a message."""
CALLERS = 4
"""Messages that are under way at a time."""
PEOPLE = 10_000
GOAL = 40_000
_RECORD = "/recparams.v1.RecommendationService/RecordInteractions"
_ASKED = 250
"""Decisions of a batch."""


@dataclass(frozen=True)
class Recorded:
    """What storing some messages took.

    Attributes:
        per_second: interactions stored.
        server: seconds of processor time of the server an interaction.
        postgres: the same of Postgres.
        size: bytes of an interaction in the database, indexes and ids included.
    """

    per_second: float
    server: float
    postgres: float
    size: float


def run(effort: Effort, folder: Path) -> Section:
    """Records into an empty database, several times over."""
    rounds, messages = effort.of(5, 1), effort.of(600, 8)
    found = [record(messages) for _ in range(rounds)]

    def median(name: str) -> float:
        return statistics.median(getattr(one, name) for one in found)

    return Section(
        "Recording",
        [
            f"One server on a core, its Postgres beside it, {CALLERS} messages of {BATCH} "
            f"interactions at a time from a caller that made them beforehand, and so takes next "
            f"to nothing. They are of {PEOPLE:,} people, with tokens and random ids.",
            Table(
                (
                    "interactions/s",
                    "CPU of the server, us each",
                    "CPU of Postgres, us each",
                    "bytes stored each",
                ),
                [
                    [
                        f"{median('per_second'):,.0f}",
                        f"{1e6 * median('server'):.1f}",
                        f"{1e6 * median('postgres'):.1f}",
                        f"{median('size'):.0f}",
                    ]
                ],
            ),
        ],
        goals=[
            Goal(
                f"interactions stored a second, in messages of {BATCH}",
                "one a second",
                median("per_second"),
                GOAL,
                shortfall=f"{1e6 * median('server'):.0f} us of the server and "
                f"{1e6 * median('postgres'):.0f} us of Postgres each",
            )
        ],
    )


def record(messages: int) -> Recorded:
    """Stores so many messages of `BATCH` interactions in a database of their own."""
    serving, _ = cores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        database = stack.enter_context(postgres())
        url = make_database(database, "recording", 0)
        port, server = stack.enter_context(running("real", serving, url, scratch))
        caller = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.recording", str(port), str(messages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert caller.stdout is not None
        caller.stdout.readline()
        before = _cpu([server]), _cpu(_of_postgres(database))
        output, _ = caller.communicate("\n", timeout=WORK_SECONDS)
        after = _cpu([server]), _cpu(_of_postgres(database))
        stored, seconds = json.loads(output)
        size = asyncio.run(_bytes(url)) / stored
    of_server, of_postgres = ((b - a) / stored for a, b in zip(before, after, strict=True))
    return Recorded(stored / seconds, of_server, of_postgres, size)


def _of_postgres(database: Any) -> list[psutil.Process]:
    pid = int(Path(database.pgdata, "postmaster.pid").read_text().split()[0])
    postmaster = psutil.Process(pid)
    return [postmaster, *postmaster.children(recursive=True)]


def _cpu(processes: Sequence[psutil.Process]) -> float:
    times = [one.cpu_times() for one in processes]
    return float(sum(one.user + one.system for one in times))


async def _bytes(url: str) -> float:
    """Of everything that grows with interactions: the tables, what holds their ids, and indexes."""
    db = await asyncpg.connect(url)
    await db.execute("VACUUM ANALYZE")
    size = await db.fetchval(
        """
        SELECT sum(pg_total_relation_size(oid)) FROM pg_class
        WHERE relkind = 'r' AND relname LIKE 'interaction%'
        """
    )
    await db.close()
    return float(size)


def _call(port: int, messages: int) -> None:
    """Makes the messages, and sends them once told to."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = grpc_pb.RecommendationServiceStub(channel)
        tokens = []
        for first in range(0, PEOPLE, _ASKED):
            asked = [request(person) for person in range(first, first + _ASKED)]
            answer = stub.BatchGetRecommendationParams(
                pb.BatchGetRecommendationParamsRequest(requests=asked)
            )
            tokens += [
                (one.user_id, given.decision_token)
                for one, given in zip(asked, answer.responses, strict=True)
            ]
        encoded = [
            pb.RecordInteractionsRequest(
                interactions=[
                    pb.Interaction(
                        interaction_id=uuid4().hex,
                        user_id=user,
                        decision_token=token,
                        reactions=[types.REACTION_COMPLETE],
                    )
                    for user, token in random.Random(number).sample(tokens, BATCH)
                ]
            ).SerializeToString()
            for number in range(messages)
        ]
        call = channel.unary_unary(_RECORD, None, pb.RecordInteractionsResponse.FromString)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as pool:
            stored = sum(answer.recorded for answer in pool.map(call, encoded))
        json.dump((stored, time.perf_counter() - began), sys.stdout)


if __name__ == "__main__":
    _call(*map(int, sys.argv[1:]))
