"""The faults: each breaks something for a while, and puts it right again."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass

import grpc

from benchmarks.soak import probe
from benchmarks.soak.links import Network
from benchmarks.soak.pooler import PgBouncer
from benchmarks.soak.postgres import Postgres
from benchmarks.soak.replicas import Replica

SLOW_DATABASE = 0.05
SLOW_CLIENTS = 0.03
TRAINER_SECONDS = 10.0


@dataclass(frozen=True)
class Site:
    """Everything that can be broken.

    Attributes:
        replicas: the servers.
        network: links to each server's port first, then each server's way to the database.
        addresses: of the servers, as clients reach them.
        pooler: between the last server's way to the database and the database; None without.
    """

    postgres: Postgres
    replicas: tuple[Replica, ...]
    network: Network
    addresses: tuple[str, ...]
    pooler: PgBouncer | None = None

    @property
    def to_database(self) -> range:
        """Links between servers and database."""
        return range(len(self.replicas), 2 * len(self.replicas))


Break = Callable[[Site, random.Random], AbstractAsyncContextManager[str]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name, about: for people.
        make: breaks things while its context lasts, and hands over what is to be said of it.
        spares_servers: whether every server goes on and can be reached.
        trains: whether it is over only when a training run has completed.
        fills_disk: whether it needs a disk that can be filled.
        needs_pooler: whether it needs a pooler.
    """

    name: str
    about: str
    make: Break
    spares_servers: bool = True
    trains: bool = False
    fills_disk: bool = False
    needs_pooler: bool = False


@asynccontextmanager
async def _server_killed(site: Site, draw: random.Random) -> AsyncIterator[str]:
    replica = draw.choice(site.replicas)
    await asyncio.to_thread(replica.kill)
    yield replica.name
    replica.start()


@asynccontextmanager
async def _trainer_killed(site: Site, draw: random.Random) -> AsyncIterator[str]:
    deadline = time.monotonic() + TRAINER_SECONDS
    while time.monotonic() < deadline:
        trainers = [one for replica in site.replicas for one in replica.trainers()]
        if trainers:
            await asyncio.sleep(draw.uniform(0.0, 2.0))
            # It may have ended by itself.
            killed = [one for one in trainers if one.is_running()]
            for one in killed:
                one.kill()
            if killed:
                yield ""
                return
        with suppress(grpc.RpcError):
            await probe.start_training(site.addresses)
        await asyncio.sleep(0.05)
    yield "no trainer was met"


def _postgres_stopped(mode: str) -> Break:
    @asynccontextmanager
    async def make(site: Site, draw: random.Random) -> AsyncIterator[str]:
        await asyncio.to_thread(site.postgres.stop, mode)
        yield ""
        await asyncio.to_thread(site.postgres.start)

    return make


@asynccontextmanager
async def _failover(site: Site, draw: random.Random) -> AsyncIterator[str]:
    await site.postgres.hand_over()
    yield ""
    await site.postgres.switch()


@asynccontextmanager
async def _pooler_killed(site: Site, draw: random.Random) -> AsyncIterator[str]:
    assert site.pooler is not None
    await asyncio.to_thread(site.pooler.kill)
    yield ""
    await asyncio.to_thread(site.pooler.start)


@asynccontextmanager
async def _disk_full(site: Site, draw: random.Random) -> AsyncIterator[str]:
    await site.postgres.fill_disk()
    yield ""
    await site.postgres.free_disk()


@asynccontextmanager
async def _log_full(site: Site, draw: random.Random) -> AsyncIterator[str]:
    await site.postgres.fill_disk()
    await site.postgres.exhaust_log()
    yield ""
    await site.postgres.free_disk()


def _database_link(mode: str, delay: float = 0.0) -> Break:
    @asynccontextmanager
    async def make(site: Site, draw: random.Random) -> AsyncIterator[str]:
        site.network.set(site.to_database, mode, delay=delay)
        yield ""
        site.network.set(site.to_database, "open")

    return make


def _client_link(mode: str) -> Break:
    @asynccontextmanager
    async def make(site: Site, draw: random.Random) -> AsyncIterator[str]:
        number = draw.randrange(len(site.replicas))
        site.network.set([number], mode)
        yield site.replicas[number].name
        site.network.set([number], "open")

    return make


@asynccontextmanager
async def _clients_slow(site: Site, draw: random.Random) -> AsyncIterator[str]:
    links = range(len(site.replicas))
    site.network.set(links, "open", delay=SLOW_CLIENTS)
    yield ""
    site.network.set(links, "open")


FAULTS = (
    Fault("server killed", "SIGKILL, then started again", _server_killed, spares_servers=False),
    Fault("trainer killed", "SIGKILL at some point of a run", _trainer_killed, trains=True),
    Fault("postgres stopped", "fast shutdown, then started", _postgres_stopped("fast")),
    Fault("postgres crashed", "immediate shutdown, then recovered", _postgres_stopped("immediate")),
    Fault("failover", "a standby takes over, and is reached after a while", _failover),
    Fault(
        "pooler killed",
        "SIGKILL of one server's PgBouncer, then started again",
        _pooler_killed,
        needs_pooler=True,
    ),
    Fault("disk full", "no room for tables to grow", _disk_full, fills_disk=True),
    Fault("log full", "Postgres stops for want of room", _log_full, fills_disk=True),
    Fault("database cut", "every connection reset and refused", _database_link("reset")),
    Fault("database silent", "no byte passes, connections stay", _database_link("hold")),
    Fault(
        "database slow",
        f"{SLOW_DATABASE * 1e3:g} ms later in each direction",
        _database_link("open", SLOW_DATABASE),
    ),
    Fault(
        "server cut",
        "clients' connections to one server reset and refused",
        _client_link("reset"),
        spares_servers=False,
    ),
    Fault(
        "server silent",
        "no byte passes between clients and one server",
        _client_link("hold"),
        spares_servers=False,
    ),
    Fault("clients slow", f"{SLOW_CLIENTS * 1e3:g} ms later in each direction", _clients_slow),
)
"""In the order of the first round."""
BY_NAME = {fault.name: fault for fault in FAULTS}
