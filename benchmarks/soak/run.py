"""One soak: puts everything up, breaks one thing after another, and looks at what came of it."""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc

from benchmarks.soak import checks, probe
from benchmarks.soak.checks import Finding
from benchmarks.soak.faults import Fault, Site
from benchmarks.soak.ledger import CALM, Ledger, Phase
from benchmarks.soak.links import Network
from benchmarks.soak.people import People, user_id
from benchmarks.soak.pooler import started_pooler
from benchmarks.soak.postgres import DATABASE, running_postgres
from benchmarks.soak.replicas import Replica, settings
from benchmarks.soak.traffic import Pace, Traffic, measure_lateness
from recparams_client import AsyncRecParamsClient
from recparams_client.conversion import request_message
from recparams_rl.state import StateSpace
from recparams_server.store.tasks import PENDING_SECONDS
from recparams_simulation.demo_server import free_port

QUIET_SECONDS = 2.0
"""Within which servers must agree after the last activation."""
DRAIN_SECONDS = 30.0
COMPARED = 200


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        faults: in the order of the first round; later ones are shuffled.
        minutes: after which no further fault begins, once each has been there.
        seed: of traffic, and of what is broken when.
        replicas: how many servers.
        people: how many are recommended to.
        bins: of the servers' states.
        warm_up_seconds: of traffic before the first training run and the first fault.
        fault_seconds, calm_seconds: how long a fault lasts, and how long it is calm before.
        recover_seconds: within which everything must work again.
        pace: of the traffic.
    """

    faults: tuple[Fault, ...]
    minutes: float = 5.0
    seed: int = 1
    replicas: int = 2
    people: int = 300
    bins: int = 5
    warm_up_seconds: float = 10.0
    fault_seconds: float = 8.0
    calm_seconds: float = 8.0
    recover_seconds: float = 60.0
    pace: Pace = field(default_factory=Pace)


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        findings: what must be 0.
        replicas: with their memory.
        skipped: faults that could not be made, and why.
        runs: training runs by status.
        versions, activations: how many there were.
        logged: errors that servers logged, by event.
        seconds: how long it took.
        pooler_crashes: how often PgBouncer ended by itself.
    """

    plan: Plan
    ledger: Ledger
    findings: list[Finding] = field(default_factory=list)
    replicas: tuple[Replica, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    versions: int = 0
    activations: int = 0
    logged: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    pooler_crashes: int = 0

    @property
    def failed(self) -> bool:
        """Whether something that must be 0 is not."""
        return any(finding.count for finding in self.findings)


async def soak(plan: Plan, folder: Path, on_phase: Callable[[Phase], None]) -> Outcome:
    """Carries out a plan in an empty folder; calls back after each fault."""
    started = time.monotonic()
    space = StateSpace(plan.bins)
    draw = random.Random(plan.seed)
    ledger = Ledger()
    outcome = Outcome(plan, ledger)
    people = People.drawn(plan.people, space, draw)
    async with _site(plan, folder) as site, asyncio.TaskGroup() as group:
        outcome.replicas = site.replicas
        traffic = Traffic(people, ledger, list(site.addresses), plan.seed, plan.pace)
        await _begin(site, people, ledger)
        work = [
            group.create_task(traffic.run()),
            group.create_task(measure_lateness(ledger)),
            group.create_task(_measure_memory(site)),
            group.create_task(_restart_pooler(site, outcome)),
        ]
        await asyncio.sleep(plan.warm_up_seconds)
        await probe.train(site.addresses, plan.recover_seconds)
        warm_up = ledger.phase
        ledger.begin(CALM)
        on_phase(warm_up)
        await _break_things(plan, site, outcome, draw, started, on_phase)
        for task in work:
            task.cancel()
        await asyncio.wait(work)
        db = await asyncpg.connect(site.postgres.url)
        try:
            outcome.findings = await _look(site, traffic, db, space, draw)
            await _count(outcome, db)
        finally:
            await db.close()
        codes = await asyncio.gather(*(asyncio.to_thread(one.terminate) for one in site.replicas))
    badly = Counter("it did not end" if c is None else f"exit code {c}" for c in codes if c != 0)
    outcome.findings.append(Finding("servers that did not end well on SIGTERM", len(codes), badly))
    for replica in site.replicas:
        outcome.logged += replica.errors()
    outcome.seconds = time.monotonic() - started
    return outcome


@contextlib.asynccontextmanager
async def _site(plan: Plan, folder: Path) -> AsyncIterator[Site]:
    """Database, network and started servers."""
    async with running_postgres(folder / "postgres", folder / "postgres.log") as postgres:
        pooler = await asyncio.to_thread(started_pooler, folder, postgres.address, postgres.user)
        ports = [free_port("127.0.0.1", 0) for _ in range(plan.replicas)]
        servers = [f"127.0.0.1:{port}" for port in ports]
        databases = [postgres.socket] * plan.replicas
        if pooler is not None:
            databases[-1] = f"127.0.0.1:{pooler.port}"
        network = Network.start([*servers, *databases])
        replicas = tuple(
            Replica(
                f"server {number}",
                port,
                folder,
                settings(
                    f"postgresql://postgres@127.0.0.1:{link}/{DATABASE}?sslmode=disable",
                    port,
                    folder,
                    plan.bins,
                ),
            )
            for number, (port, link) in enumerate(
                zip(ports, network.ports[plan.replicas :], strict=True)
            )
        )
        addresses = tuple(f"127.0.0.1:{port}" for port in network.ports[: plan.replicas])
        try:
            for replica in replicas:
                replica.start()
            yield Site(postgres, replicas, network, addresses, pooler)
        finally:
            for replica in replicas:
                replica.kill()
            network.stop()
            if pooler is not None:
                pooler.stop()


async def _begin(site: Site, people: People, ledger: Ledger) -> None:
    """Returns when every server is well and everybody's profile is stored."""
    async with AsyncRecParamsClient(list(site.addresses), write_timeout=30.0) as client:
        deadline = time.monotonic() + 60.0
        while True:
            try:
                await _put_profiles(client, people)
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.2)
    ledger.acknowledged |= dict.fromkeys(await probe.wait_well(site.addresses, 60.0))


async def _put_profiles(client: AsyncRecParamsClient, people: People) -> None:
    everybody = {user_id(one): people.profile(one) for one in range(len(people.scores))}
    await client.put_personality_profiles(everybody)


async def _restart_pooler(site: Site, outcome: Outcome) -> None:
    """Starts PgBouncer again where it ended by itself, as whatever runs it elsewhere does."""
    while site.pooler is not None:
        await asyncio.sleep(0.2)
        if site.pooler.has_crashed:
            outcome.pooler_crashes += 1
            await asyncio.to_thread(site.pooler.start)


async def _measure_memory(site: Site) -> None:
    while True:
        for replica in site.replicas:
            replica.look(time.monotonic())
        await asyncio.sleep(1.0)


async def _break_things(
    plan: Plan,
    site: Site,
    outcome: Outcome,
    draw: random.Random,
    started: float,
    on_phase: Callable[[Phase], None],
) -> None:
    for fault in plan.faults:
        if fault.fills_disk and site.postgres.no_disk:
            outcome.skipped[fault.name] = site.postgres.no_disk
        if fault.needs_pooler and site.pooler is None:
            outcome.skipped[fault.name] = "PgBouncer is not installed"
    faults = [fault for fault in plan.faults if fault.name not in outcome.skipped]
    end = started + 60.0 * plan.minutes
    everyone_was_there = False
    while not everyone_was_there or time.monotonic() < end:
        for fault in faults:
            if everyone_was_there and time.monotonic() > end:
                break
            await asyncio.sleep(plan.calm_seconds)
            phase = await _break(plan, site, outcome.ledger, fault, draw)
            outcome.ledger.begin(CALM)
            on_phase(phase)
        everyone_was_there = True
        draw.shuffle(faults)
    await asyncio.sleep(plan.calm_seconds)


async def _break(
    plan: Plan, site: Site, ledger: Ledger, fault: Fault, draw: random.Random
) -> Phase:
    phase = ledger.begin(fault.name, spares_servers=fault.spares_servers)
    async with fault.make(site, draw) as note:
        phase.note = note
        await asyncio.sleep(plan.fault_seconds)
    phase.lifted = time.monotonic()
    try:
        probed = await probe.wait_well(site.addresses, plan.recover_seconds)
        ledger.acknowledged |= dict.fromkeys(probed)
        if fault.trains:
            await probe.train(site.addresses, plan.recover_seconds)
    except probe.NotRecoveredError as failure:
        phase.recovered = False
        phase.note = f"{phase.note} {failure}".strip()
    return phase


async def _look(
    site: Site, traffic: Traffic, db: asyncpg.Connection, space: StateSpace, draw: random.Random
) -> list[Finding]:
    """Lets everything come to rest, and checks it."""
    ledger = traffic.ledger
    recovered = checks.recoveries(ledger)
    agreeing = []
    try:
        await _come_to_rest(site, traffic)
        newest = await db.fetchval("SELECT max(version) FROM model_versions")
        await probe.activate(site.addresses[0], newest or 0)
        await asyncio.sleep(QUIET_SECONDS)
        requests = [request_message(traffic.people.request(draw)[1]) for _ in range(COMPARED)]
        agreeing.append(await checks.disagreeing(db, site.addresses, requests, space))
    except (probe.NotRecoveredError, grpc.RpcError) as failure:
        recovered.found[f"at the end: {failure}"] += 1
    return [
        *await checks.acknowledged(db, ledger.acknowledged),
        *await checks.trained(db, space),
        await checks.wrong_answers(db, ledger.answers, space),
        *agreeing,
        checks.failed_decisions(ledger),
        recovered,
    ]


async def _come_to_rest(site: Site, traffic: Traffic) -> None:
    """Records what is left, and trains everything."""
    ledger = traffic.ledger
    ledger.acknowledged |= dict.fromkeys(await probe.wait_well(site.addresses, DRAIN_SECONDS))
    deadline = time.monotonic() + DRAIN_SECONDS
    async with AsyncRecParamsClient(list(site.addresses), write_timeout=30.0) as client:
        while traffic.outbox and time.monotonic() < deadline:
            await traffic.record(client)
    # Whoever started a run as the database was cut may not have heard of it, and starts no trainer.
    await probe.train(site.addresses, PENDING_SECONDS + DRAIN_SECONDS)


async def _count(outcome: Outcome, db: asyncpg.Connection) -> None:
    runs = await db.fetch(
        "SELECT status, count(*) FROM system_tasks WHERE task_name = 'rl_training' GROUP BY status"
    )
    outcome.runs = Counter(dict(map(tuple, runs)))
    outcome.versions = await db.fetchval("SELECT count(*) FROM model_versions")
    outcome.activations = await db.fetchval("SELECT count(*) FROM model_activations")
