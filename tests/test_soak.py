"""The soak runs, goes through every fault, and would see what must not happen."""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
import pytest

from benchmarks.soak import checks
from benchmarks.soak.checks import Finding
from benchmarks.soak.faults import FAULTS
from benchmarks.soak.ledger import CALM, DECIDE, Ledger
from benchmarks.soak.links import Network
from benchmarks.soak.people import People, user_id
from benchmarks.soak.pooler import PROGRAM, PgBouncer
from benchmarks.soak.replicas import EXPLORATION
from benchmarks.soak.report import verdict
from benchmarks.soak.run import Outcome, Plan
from recparams_client import AsyncRecParamsClient, Interaction
from recparams_client.conversion import request_message
from recparams_server.app import App
from recparams_server.settings import Settings
from recparams_simulation.demo_server import free_port
from tests.faults import SMALL, SPACE
from tests.processes import run
from tests.support import ROOT, Client, in_process, train

SHORT = {
    "--minutes": 0,
    "--bins": 2,
    "--warm-up-seconds": 2,
    "--fault-seconds": 0.7,
    "--calm-seconds": 0.2,
    "--train-seconds": 3,
    "--recover-seconds": 30,
}
POOLER_FAULTS = {fault.name for fault in FAULTS if fault.needs_pooler}
DISK_FAULTS = {fault.name for fault in FAULTS if fault.fills_disk}


@pytest.mark.skipif(PROGRAM is None, reason="needs PgBouncer")
def test_a_pooler_that_ends_by_itself_is_told_from_one_that_is_killed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    port = free_port("127.0.0.1", 0)
    pooler = PgBouncer(tmp_path / "pooler", port, "host=127.0.0.1 port=1")
    pooler.start()
    try:
        pooler.kill()
        assert not pooler.has_crashed
        pooler.start()
        assert not pooler.has_crashed
        (listener,) = (
            one.pid for one in psutil.net_connections("tcp4") if one.laddr.port == port and one.pid
        )
        os.kill(listener, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(listener)], timeout=30)
        assert pooler.has_crashed
    finally:
        pooler.stop()


def test_a_short_soak_goes_through_every_fault(tmp_path: Path) -> None:
    summary, logs = tmp_path / "soak.md", tmp_path / "logs"
    arguments = [str(part) for pair in SHORT.items() for part in pair]
    done = run(
        *(sys.executable, "-m", "benchmarks.soak", *arguments),
        *("--into", summary, "--keep", logs),
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = summary.read_text()
    first, faults = (table(section) for section in text.split("## Faults"))
    assert {row[1] for row in first} == {"0"}, text
    assert all(int(row[2].replace(",", "")) > 0 for row in first), text
    met = {row[0].partition(":")[0]: row for row in faults}
    skipped = DISK_FAULTS if "Not done: disk full" in text else set()
    assert bool(skipped) or os.geteuid() == 0
    without = set() if PROGRAM else POOLER_FAULTS
    assert ("Not done: pooler killed: PgBouncer is not installed." in text) == bool(without)
    assert set(met) >= {fault.name for fault in FAULTS} - skipped - without
    for name, row in met.items():
        assert int(row[2].replace(",", "")) > 0, f"nobody decided during {name}"
        if name != CALM:
            assert (row[1], row[-1].endswith(" s")) == ("1", True), row
    if not skipped:
        assert "No space left on device" in (logs / "postgres.log").read_text()


def table(section: str) -> list[list[str]]:
    """The rows of the first Markdown table of a text."""
    lines = section[section.index("| ") :].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """A server that hears of versions by notification alone."""
    changes = {**SMALL, "exploration": EXPLORATION, "reload_poll_seconds": 3600}
    return in_process(database_url, tmp_path, **changes)


@dataclass
class Used:
    """A server that was used well: everything was acknowledged and trained."""

    client: Client
    address: str
    people: People
    ledger: Ledger
    db: asyncpg.Connection

    async def use(self, decisions: int) -> None:
        """Decides and records."""
        draw = random.Random(len(self.ledger.answers))
        async with AsyncRecParamsClient(self.address, decision_timeout=10) as backend:
            for _ in range(decisions):
                _, request = self.people.request(draw)
                given = await backend.get_recommendation_params(request)
                answer = self.people.answer(request, given)
                self.ledger.answers.append(answer)
                interaction = Interaction(request.user_id, given.decision_token, ("like",))
                await backend.record_interactions([interaction])
                self.ledger.acknowledged[interaction.interaction_id] = answer

    async def found(self) -> dict[str, int]:
        """What the checks find that must be 0, where it is not."""
        findings = [
            *await checks.acknowledged(self.db, self.ledger.acknowledged),
            *await checks.trained(self.db, SPACE),
            await checks.wrong_answers(self.db, self.ledger.answers, SPACE),
        ]
        return {finding.what: finding.count for finding in findings if finding.count}


@pytest.fixture
async def used(client: Client, app: App, db: asyncpg.Connection) -> AsyncIterator[Used]:
    """Used before and after a version was trained, and trained again."""
    address = f"127.0.0.1:{app.port}"
    people = People.drawn(20, SPACE, random.Random(1))
    async with AsyncRecParamsClient(address) as backend:
        everybody = {user_id(one): people.profile(one) for one in range(20)}
        await backend.put_personality_profiles(everybody)
    one = Used(client, address, people, Ledger(), db)
    for _ in range(2):
        await one.use(40)
        await train(client)
    assert await one.found() == {}
    yield one


async def test_lost_changed_and_wrongly_trained_interactions_are_found(used: Used) -> None:
    await used.use(7)
    assert await used.found() == {"interactions never trained": 7}
    await used.db.execute("UPDATE users SET trained_through = 0, has_waiting = true")
    await train(used.client)
    assert await used.found() == {"interactions trained twice": 80}

    lost, doubled, changed, *_ = used.ledger.acknowledged
    await used.db.execute("DELETE FROM interactions WHERE interaction_id = $1", lost)
    await used.db.execute("CREATE TEMP TABLE copy AS SELECT * FROM interactions")
    await used.db.execute("DELETE FROM copy WHERE interaction_id <> $1", doubled)
    await used.db.execute("UPDATE copy SET id = nextval('interaction_id_seq')")
    await used.db.execute("INSERT INTO interactions SELECT * FROM copy")
    await used.db.execute(
        "UPDATE interactions SET model_version = 77 WHERE interaction_id = $1", changed
    )
    findings = await checks.acknowledged(used.db, used.ledger.acknowledged)
    assert [finding.found for finding in findings] == [
        {lost: 1},
        {"rows too many": 1},
        {changed: 1},
    ]


WRONG: tuple[tuple[dict[str, object], str], ...] = (
    ({"version": 99}, "version 99 was never served"),
    ({"action": -1}, "parameters of another action"),
    ({"action": 1, "named": 1}, "another action than version"),
    ({"source": "exploration"}, "another action than version"),
    ({"source": "learned"}, "another source than version"),
    ({"propensity": 0.5}, "another propensity"),
    ({"reason": "no_profile"}, "a stored profile was not found"),
    ({"reason": "profile_unavailable"}, "another action than the rules'"),
    ({"reason": "no_model"}, "reason 'no_model' of version"),
)


async def test_wrong_answers_are_found(used: Used) -> None:
    greedy = next(
        one
        for one in reversed(used.ledger.answers)
        if one.version
        and one.source in ("borrowed", "rule_based")
        and one.named not in (1, one.neutral)
    )
    for changes, says in WRONG:
        wrong = greedy._replace(**changes)
        finding = await checks.wrong_answers(used.db, [greedy, wrong, greedy], SPACE)
        assert (finding.count, finding.of) == (1, 3), changes
        assert says in next(iter(finding.found))

    requests = [request_message(used.people.request(random.Random(n))[1]) for n in range(10)]
    same = await checks.disagreeing(used.db, [used.address], requests, SPACE)
    assert (same.count, same.of) == (0, 10)
    await used.db.execute("ALTER TABLE model_activations DISABLE TRIGGER USER")
    await used.db.execute("INSERT INTO model_activations (reason) VALUES ('unheard of')")
    finding = await checks.disagreeing(used.db, [used.address], requests, SPACE)
    assert finding.count == 10


async def test_decisions_that_fail_count_where_every_server_can_be_reached() -> None:
    people, ledger = People.drawn(2, SPACE, random.Random(1)), Ledger()
    nobody = f"127.0.0.1:{free_port('127.0.0.1', 0)}"
    async with AsyncRecParamsClient(nobody, decision_timeout=0.1) as client:
        for spares in (False, True):
            ledger.begin("some fault", spares_servers=spares)
            with ledger.call(DECIDE) as call:
                _, request = people.request(random.Random(1))
                assert not call.answered([await client.get_recommendation_params(request)])
    finding = checks.failed_decisions(ledger)
    assert (finding.count, finding.of) == (1, 1)


def test_a_fault_without_recovery_fails_the_soak() -> None:
    ledger = Ledger()
    outcome = Outcome(Plan(FAULTS), ledger, [checks.recoveries(ledger)])
    assert not outcome.failed
    phase = ledger.begin("server killed", spares_servers=False)
    phase.lifted, phase.recovered, phase.note = time.monotonic(), False, "server 1"
    outcome.findings = [Finding("other", 3, Counter()), checks.recoveries(ledger)]
    assert outcome.failed
    assert "server killed: server 1 (1)" in verdict(outcome).markdown()


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    """A server that sends back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1024):
            writer.write(piece)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


@pytest.fixture
def network(echo: str) -> Iterator[Network]:
    """Two links to it."""
    started = Network.start([echo, echo])
    yield started
    started.stop()


async def test_links_can_be_held_slowed_and_reset(network: Network) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", network.ports[0])
    beside, to_beside = await asyncio.open_connection("127.0.0.1", network.ports[1])

    async def round_trip(text: bytes) -> float:
        started = time.monotonic()
        writer.write(text)
        assert await reader.readexactly(len(text)) == text
        return time.monotonic() - started

    assert await round_trip(b"open") < 0.5
    await asyncio.to_thread(network.set, [0], "open", delay=0.3)
    assert await round_trip(b"slow") >= 0.6
    await asyncio.to_thread(network.set, [0], "hold")
    writer.write(b"held")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.readexactly(1), 0.2)
    await asyncio.to_thread(network.set, [0], "open")
    assert await reader.readexactly(4) == b"held"
    await asyncio.to_thread(network.set, [0], "reset")
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    with pytest.raises(ConnectionResetError):
        await reset_at_once(network.ports[0])
    to_beside.write(b"on")
    assert await beside.readexactly(2) == b"on"
    for one in (writer, to_beside):
        one.close()


async def reset_at_once(port: int) -> None:
    """Connects and reads, if it comes to that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await reader.readexactly(1)
    finally:
        writer.close()
