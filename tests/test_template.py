"""Jobs are forked from a template process, and end with all that they depend on."""

import asyncio
import json
import os
import random
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import psutil
import pytest

from recparams.v1 import training_pb2 as tpb
from recparams_server.app import App
from recparams_server.jobs import forked
from recparams_server.jobs.forked import ForkedProcess, Template
from recparams_server.jobs.lifeline import Lifeline
from recparams_server.jobs.processes import STORE_AWAY, UNUSABLE_MODEL
from recparams_server.settings import Settings
from tests.faults import (
    SMALL,
    batch,
    eventually,
    get_run,
    gone,
    holding,
    job_processes,
    said_killed,
    template_processes,
    trained_state,
    trainer_is_blocked,
    trainer_process,
    trainers_are_gone,
    trigger,
)
from tests.processes import has_ended, run
from tests.support import (
    ADMIN,
    ROOT,
    Client,
    connect,
    environment,
    failure_of,
    in_process,
    record,
    train,
    wait_ended,
    wait_serving,
)

COMPLETED, FAILED = tpb.TRAINING_RUN_STATUS_COMPLETED, tpb.TRAINING_RUN_STATUS_FAILED
NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"
LOOKS_AROUND = """
import json, os, random, signal, sys, threading

import numpy as np

import recparams_server.jobs.__main__


def look_around(arguments):
    print(json.dumps({
        "arguments": arguments,
        "input": sys.stdin.read(),
        "environment": dict(os.environ),
        "drawn": [random.random(), np.random.random()],
        "signals": [int(signal.getsignal(n)) for n in (signal.SIGCHLD, signal.SIGTERM)],
        "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "files": len(os.listdir("/dev/fd")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }))
    sys.stderr.write("said on stderr")
    return 7


recparams_server.jobs.__main__.main = look_around
"""


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(database_url, tmp_path, **SMALL)


@pytest.fixture
def lifeline() -> Iterator[Lifeline]:
    held = Lifeline()
    yield held
    held.close()


@pytest.fixture
def own(lifeline: Lifeline) -> Iterator[Template]:
    """A template of this test alone."""
    template = Template()
    yield template
    template.close()


@pytest.fixture
async def alone(settings: Settings, own: Template) -> Any:
    """A server on a template of this test alone, and a client of it."""
    app = App(settings, template=own)
    await app.start()
    async with connect(f"127.0.0.1:{app.port}") as client:
        await wait_serving(client)
        yield client
    await app.stop()


def process_of(template: Template) -> psutil.Process:
    assert template._process is not None
    return psutil.Process(template._process._process.pid)


async def finished(process: ForkedProcess) -> tuple[int, bytes]:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        output = await process.stdout.read()
        code = await process.wait()
    process.close()
    return code, output


async def blocked_job(template: Template, lifeline: Lifeline, url: str) -> ForkedProcess:
    """A job that waits for a lock that the caller holds."""
    return await template.start(
        *("export", "1"), environment=environment(url, **SMALL), lifeline=lifeline.reader
    )


async def started(process: ForkedProcess) -> psutil.Process:
    async def has_started() -> bool:
        return process.pid > 0

    await eventually(has_started)
    return psutil.Process(process.pid)


@pytest.mark.parametrize(
    ("arguments", "reachable"), [("nonsense", True), ("export 1", True), ("export 1", False)]
)
async def test_a_job_does_what_it_does_when_run_by_hand(
    template: Template, lifeline: Lifeline, database_url: str, arguments: str, reachable: bool
) -> None:
    given = environment(database_url if reachable else NOWHERE, **SMALL)
    process = await template.start(*arguments.split(), environment=given, lifeline=lifeline.reader)
    code, output = await finished(process)
    by_hand = await asyncio.to_thread(
        run,
        *(sys.executable, "-P", "-m", "recparams_server.jobs", *arguments.split()),
        env=given,
        cwd=ROOT,
    )
    assert (code, output.decode()) == (by_hand.returncode, by_hand.stdout)
    known = 2 if arguments == "nonsense" else UNUSABLE_MODEL
    assert code == (known if reachable else STORE_AWAY)


async def test_what_a_job_is_given_and_nothing_else(
    own: Template,
    lifeline: Lifeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOOKS_AROUND)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = []
    for number in range(3):
        process = await own.start(
            *("import", str(number)),
            environment={"NUMBER": str(number), "ODD": "\udc80"},
            lifeline=lifeline.reader,
            stdin=PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"given")
        process.stdin.write_eof()
        code, output = await finished(process)
        assert code == 7
        seen.append(json.loads(output))
        assert "said on stderr" in capfd.readouterr().err
    for number, one in enumerate(seen):
        assert one["arguments"] == ["import", str(number)]
        assert one["input"] == "given"
        assert one["environment"] == {"NUMBER": str(number), "ODD": "\udc80"}
        assert one["signals"] == [signal.SIG_DFL, signal.SIG_DFL]
        assert one["interrupted"]
        assert one["threads"] == ["MainThread", "lifeline"]
        assert one["files"] == seen[0]["files"]
    for drawn in zip(*(one["drawn"] for one in seen), strict=True):
        assert len(set(drawn)) == len(seen)


async def test_a_killed_job_is_over(
    template: Template, lifeline: Lifeline, database_url: str
) -> None:
    async with holding(database_url, "LOCK model_versions"):
        killed = await blocked_job(template, lifeline, database_url)
        process = await started(killed)
        killed.kill()
        assert await finished(killed) == (-signal.SIGKILL, b"")
        assert not process.is_running()
        killed.kill()
        at_once = await blocked_job(template, lifeline, database_url)
        at_once.kill()
        assert await finished(at_once) == (-signal.SIGKILL, b"")


async def test_a_job_nobody_waits_for_is_killed(
    template: Template, lifeline: Lifeline, database_url: str
) -> None:
    async with holding(database_url, "LOCK model_versions"):
        left = await blocked_job(template, lifeline, database_url)
        process = await started(left)
        left.close()
        await gone(process)


async def test_training_leaves_one_thread_in_the_template(alone: Client, own: Template) -> None:
    await record(alone, *batch(0))
    first, second = await train(alone), await train(alone)
    assert (first.status, second.status) == (COMPLETED, COMPLETED)
    assert process_of(own).num_threads() == 1


async def test_a_template_killed_while_a_run_trains(
    alone: Client, own: Template, db: asyncpg.Connection, database_url: str
) -> None:
    await record(alone, *batch(0))
    assert (await train(alone)).status == COMPLETED
    await record(alone, *batch(1))
    before = await trained_state(db)
    async with holding(database_url, "LOCK interactions"):
        run_id = await trigger(alone)
        await eventually(lambda: trainer_is_blocked(db, "interactions"))
        trainer = trainer_process(os.getpid(), run_id)
        process_of(own).kill()
        ended = await wait_ended(alone, run_id)
        # Not marked before its trainer was over.
        assert has_ended(trainer)
    assert ended.status == FAILED
    await said_killed(db, run_id)
    await eventually(lambda: trainers_are_gone(db))
    assert await trained_state(db) == before
    again = await train(alone)
    assert (again.status, again.interactions_trained) == (COMPLETED, len(batch(1)))


async def test_what_is_forked_ends_with_a_killed_server(
    db: asyncpg.Connection, database_url: str, start_server: Any
) -> None:
    server = start_server(**SMALL)
    async with connect(server.target) as client:
        await wait_serving(client)
        assert template_processes(server.process.pid) == []
        await record(client, *batch(0))
        async with holding(database_url, "LOCK interactions"):
            run_id = await trigger(client)
            await eventually(lambda: trainer_is_blocked(db, "interactions"))
            (template,) = template_processes(server.process.pid)
            trainer = trainer_process(server.process.pid, run_id)
            server.kill()
            await gone(template)
            await gone(trainer)


async def test_what_is_forked_ends_with_a_server_that_drains(
    db: asyncpg.Connection, database_url: str, start_server: Any
) -> None:
    server = start_server(**SMALL)

    async def jobs_are_gone() -> bool:
        return not job_processes(server.process.pid)

    async with connect(server.target) as client:
        await wait_serving(client)
        await record(client, *batch(0))
        assert (await train(client)).status == COMPLETED
        (template,) = template_processes(server.process.pid)
        # Its run ended before its process did.
        await eventually(jobs_are_gone)
    assert await asyncio.to_thread(server.terminate) == 0
    assert not template.is_running()


async def test_an_idle_template_ends_and_no_job_is_lost(
    lifeline: Lifeline, database_url: str
) -> None:
    template = Template(idle_seconds=0.05)
    given = environment(database_url, **SMALL)
    draw = random.Random(1)
    used: set[int] = set()

    async def one_after_another() -> None:
        for _ in range(6):
            process = await template.start("gain", environment=given, lifeline=lifeline.reader)
            used.add(process_of(template).pid)
            code, output = await finished(process)
            assert (code, bool(output)) == (0, True)
            await asyncio.sleep(draw.uniform(0, 0.1))

    try:
        await asyncio.gather(*(one_after_another() for _ in range(3)))
        await asyncio.sleep(0.2)
        process = await template.start("gain", environment=given, lifeline=lifeline.reader)
        last = process_of(template)
        assert last.pid not in used
        assert (await finished(process))[0] == 0

        async def is_reaped() -> bool:
            return not last.is_running()

        await eventually(is_reaped)
    finally:
        template.close()


async def test_two_servers_share_a_template(
    settings: Settings, alone: Client, own: Template, db: asyncpg.Connection, database_url: str
) -> None:
    other = App(settings.model_copy(update={"drain_seconds": 0}), template=own)
    await other.start()
    async with connect(f"127.0.0.1:{other.port}") as client:
        await wait_serving(client)
        await record(client, *batch(0))
        async with holding(database_url, "LOCK interactions"):
            run_id = await trigger(alone)
            await eventually(lambda: trainer_is_blocked(db, "interactions"))
            first = process_of(own)
            evaluating = asyncio.create_task(
                failure_of(client.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN))
            )

            async def both_run() -> bool:
                return len(first.children()) == 2

            await eventually(both_run)
            await other.stop()
            await evaluating

            async def one_is_left() -> bool:
                return [job.name() for job in first.children()] == [f"train {run_id}"]

            await eventually(one_is_left)
    assert (await wait_ended(alone, run_id)).status == COMPLETED
    assert process_of(own) == first


async def test_a_template_that_cannot_start(
    alone: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record(alone, *batch(0))
    (tmp_path / "asyncpg.py").write_text("raise ImportError('it is broken')")
    with monkeypatch.context() as broken:
        broken.setenv("PYTHONPATH", str(tmp_path))
        run_id = await trigger(alone)
        ended = await wait_ended(alone, run_id)
        asked = alone.training.Evaluate(tpb.EvaluateRequest(), metadata=ADMIN)
        assert (await failure_of(asked)).code == grpc.StatusCode.INTERNAL
    assert ended.status == FAILED
    assert ended.error == "the trainer exited with code 1; nothing was changed"
    assert (await train(alone)).status == COMPLETED


async def test_no_process_for_a_template(alone: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python")
        asked = alone.training.TriggerTraining(tpb.TriggerTrainingRequest(), metadata=ADMIN)
        assert (await failure_of(asked)).code == grpc.StatusCode.UNAVAILABLE
    assert (await get_run(alone, 1)).error == "the trainer could not be started"
    assert (await train(alone)).status == COMPLETED


async def test_a_template_that_hangs_is_given_up(
    own: Template, lifeline: Lifeline, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = environment(database_url, **SMALL)
    assert (await finished(await own.start("gain", environment=given, lifeline=lifeline.reader)))[
        0
    ] == 0
    async with holding(database_url, "LOCK model_versions"):
        running = await blocked_job(own, lifeline, database_url)
        process = await started(running)
        process_of(own).suspend()
        monkeypatch.setattr(forked, "KILL_SECONDS", 0.5)
        running.kill()
        assert await finished(running) == (-signal.SIGKILL, b"")
        await gone(process, 1)
    assert (await finished(await own.start("gain", environment=given, lifeline=lifeline.reader)))[
        0
    ] == 0
    process_of(own).suspend()
    monkeypatch.setattr(forked, "START_SECONDS", 0.5)
    late = await own.start("gain", environment=given, lifeline=lifeline.reader)
    assert await finished(late) == (-signal.SIGKILL, b"")
