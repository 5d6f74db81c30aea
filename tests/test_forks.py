"""Programs that fork, end, or are ended, with a policy and a reporter made before."""

import asyncio
import signal
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

from recparams_server.app import App
from tests.processes import run, running

SECONDS = 120.0

BEGINNING = """
import multiprocessing, os, signal, sys, threading, time
signal.alarm(100)
foreign = None
if sys.argv[2] == "foreign":
    import grpc
    foreign = grpc.insecure_channel(sys.argv[1])
    grpc.channel_ready_future(foreign).result(20)
from recparams_client import *
from recparams_client import forks
asked = DecisionRequest("ada", "music", "calm", "evening",
                        personality=PersonalityProfile(75, 60, 40, 80, 30))
client = RecParamsClient(sys.argv[1], decision_timeout=20)
local = LocalPolicy(sys.argv[1])
reporter = InteractionReporter(client, interval=0.01)

def report(count):
    assert local.wait(20)
    for _ in range(count):
        decision = local.get_recommendation_params(asked)
        assert not decision.is_fallback
        assert reporter.report(Interaction("ada", decision.decision_token, ("like",)))
"""

FORKING = (
    BEGINNING
    + """
if foreign is None:
    # As long as a busy machine takes.
    forks.PATIENCE = forks.PROBE_SECONDS = 20.0
stopping = threading.Event()
fallbacks = []
def ask():
    while not stopping.is_set():
        fallbacks.append(client.get_recommendation_params(asked).is_fallback)
threads = [threading.Thread(target=ask) for _ in range(2 * (sys.argv[2] == "busy"))]
for thread in threads:
    thread.start()
if sys.argv[2] != "early":
    report(30)
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        try:
            assert (reporter.delivered, reporter.undelivered, reporter.queued) == (0, 0, 0)
            report(20)
            assert not client.get_recommendation_params(asked).is_fallback
            assert reporter.flush(20) and reporter.delivered == 20
            deadline = time.monotonic() + 20
            while local.problem and time.monotonic() < deadline:
                time.sleep(0.01)
            assert local.problem == ""
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stopping.set()
for thread in threads:
    thread.join()
report(10)
assert reporter.flush(20) and reporter.undelivered == 0
assert not any(fallbacks) and codes == [0, 0, 0], codes
"""
)


async def stored(app: App, db: asyncpg.Connection, program: str, how: str, **options: Any) -> int:
    """Runs a program to its good end; returns the number of interactions in the database."""
    command = [sys.executable, "-c", program, f"127.0.0.1:{app.port}", how]
    done = await asyncio.to_thread(run, *command, seconds=SECONDS, **options)
    assert done.returncode == 0, done.stderr
    return int(await db.fetchval("SELECT count(*) FROM interactions"))


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("how", ["idle", "busy", "early"])
async def test_parent_and_children_go_on_after_a_fork(
    app: App, db: asyncpg.Connection, how: str
) -> None:
    assert await stored(app, db, FORKING, how) == (70 if how == "early" else 100)


@pytest.mark.usefixtures("client")
async def test_connections_of_others_live_through_forks_where_grpc_supports_them(
    app: App, db: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")
    assert await stored(app, db, FORKING, "foreign") == 100


TOLD = (
    BEGINNING
    + """
report(1)
assert reporter.flush(20)
child = os.fork()
if child == 0:
    began, told = time.monotonic(), 0
    for use in (
        lambda: local.wait(20),
        lambda: local.get_recommendation_params(asked),
        lambda: local.decide(asked),
        lambda: client.get_recommendation_params(asked),
        lambda: client.record_interactions([Interaction("ada", b"token", ("like",))]),
        lambda: reporter.report(Interaction("ada", b"token", ("like",))),
    ):
        try:
            use()
        except RecParamsError as failure:
            told += "GRPC_ENABLE_FORK_SUPPORT" in str(failure)
    reporter.close()
    local.close()
    os._exit(told if time.monotonic() - began < 5 else 99)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 6, code
report(1)
assert reporter.flush(20)
"""
)


@pytest.mark.usefixtures("client")
async def test_a_child_in_which_grpc_cannot_work_is_told_at_once(
    app: App, db: asyncpg.Connection
) -> None:
    assert await stored(app, db, TOLD, "foreign") == 2


MULTIPROCESSING = (
    BEGINNING
    + """
report(5)
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=report, args=(20,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0, worker.exitcode
"""
)


@pytest.mark.usefixtures("client")
async def test_children_of_multiprocessing_send_what_is_left(
    app: App, db: asyncpg.Connection
) -> None:
    assert await stored(app, db, MULTIPROCESSING, "idle") == 45


ENDED = (
    BEGINNING.replace("interval=0.01", "interval=60")
    + """
with exit_on_sigterm():
    report(1200)
    print("reported", flush=True)
    while True:
        time.sleep(1)
"""
)


@pytest.mark.usefixtures("client")
async def test_sigterm_sends_what_is_left(app: App, db: asyncpg.Connection) -> None:
    command = [sys.executable, "-c", ENDED, f"127.0.0.1:{app.port}", "idle"]

    def end() -> int:
        with running(*command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "reported\n"
            process.send_signal(signal.SIGTERM)
            return int(process.wait(60))

    assert await asyncio.to_thread(end) == 128 + signal.SIGTERM
    assert await db.fetchval("SELECT count(*) FROM interactions") == 1200


HANDLERS = """
import signal
from recparams_client import exit_on_sigterm
def own(*_):
    pass
signal.signal(signal.SIGTERM, own)
with exit_on_sigterm():
    assert signal.getsignal(signal.SIGTERM) is own
signal.signal(signal.SIGTERM, signal.SIG_DFL)
with exit_on_sigterm():
    assert callable(signal.getsignal(signal.SIGTERM))
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
try:
    with exit_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
except SystemExit as ending:
    assert ending.code == 143
signal.raise_signal(signal.SIGTERM)
"""


def test_handlers_of_sigterm_are_left_as_they_were() -> None:
    done = run(sys.executable, "-c", HANDLERS, seconds=SECONDS)
    assert done.returncode == 0, done.stderr
