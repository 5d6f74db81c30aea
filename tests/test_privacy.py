"""What must not get out: personal data and secrets into logs, and values into the text of SQL."""

import ast
import base64
import sys
import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import grpc
import pytest

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import training_pb2 as tpb
from recparams.v1 import types_pb2 as types
from recparams_server.rpc.methods import Kind
from recparams_server.settings.callers import key_hash
from tests import fuzzing
from tests.fuzzing import METHODS, Known, kind_of
from tests.processes import run
from tests.sources import parsed
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    ROOT,
    Client,
    ServerProcess,
    connect,
    failure_of,
    logged,
    request,
    train,
    wait_serving,
)

PERSON = "person-of-whom-no-log-may-tell"
CALLER_KEY = "the-key-of-a-caller-that-no-log-may-have"
WRONG_KEY = "a-wrong-key-that-no-log-may-have-either"
TOKEN_KEY = "the-token-key-which-no-log-may-ever-have"
PASSWORD = "the-password-that-no-log-may-have"
SCORE = 61.803398
SHARE = 0.61803398
PERSONALITY = types.PersonalityProfile(
    openness=SCORE,
    conscientiousness=SCORE,
    extraversion=SCORE,
    agreeableness=SCORE,
    neuroticism=SCORE,
)
KEYS = (ADMIN, (("x-api-key", CALLER_KEY),), (("x-admin-key", WRONG_KEY),), ())


@pytest.fixture
def server(start_server: Any, database_url: str) -> ServerProcess:
    """One that logs all it has to say, and knows its callers."""
    joined = "&" if "?" in database_url else "?"
    started: ServerProcess = start_server(
        # The embedded Postgres asks for no password, and ignores this one.
        database_url=f"{database_url}{joined}password={PASSWORD}",
        log_level="debug",
        authorization="keys",
        callers=f"backend:recommend+record:{key_hash(CALLER_KEY)}",
        token_key=TOKEN_KEY,
        bins=2,
        settling_seconds=0,
        min_interactions_per_user=1,
    )
    return started


def forms(token: bytes) -> Iterator[str]:
    """What a token looks like in a log, whatever it was written with."""
    yield token.hex()
    yield base64.b64encode(token).decode()
    yield repr(token)[2:-1]
    # Without the part that all tokens of one person have in common.
    yield token[-16:].hex()
    yield repr(token[-16:])[2:-1]


def assert_silent(server: ServerProcess, *tokens: bytes) -> None:
    """The log has none of what is personal or secret, and is a log of this."""
    text = server.log.read_text()
    assert '"serving"' in text
    secrets = (ADMIN_KEY, CALLER_KEY, WRONG_KEY, TOKEN_KEY, PASSWORD)
    scores = (f"{SCORE:.3f}", f"{SHARE:.5f}")
    for forbidden in (PERSON, *secrets, *scores, *(form for t in tokens for form in forms(t))):
        where = text.find(forbidden)
        assert where < 0, text[max(0, where - 1500) : where + 200]


async def a_week(client: Client) -> bytes:
    """A decision, its reaction and some more, trained; returns the decision's token."""
    key = (("x-api-key", CALLER_KEY),)
    asked = request(PERSON, personality=PERSONALITY)
    decision = await client.recommendation.GetRecommendationParams(asked, metadata=key)
    profiles = [pb.UserPersonalityProfile(user_id=PERSON, personality=PERSONALITY)]
    await client.recommendation.PutPersonalityProfiles(
        pb.PutPersonalityProfilesRequest(profiles=profiles), metadata=key
    )
    reactions = [logged(f"{PERSON}-{i}", PERSON, completion_rate=SHARE) for i in range(30)]
    told = pb.Interaction(
        interaction_id=f"{PERSON}-told",
        user_id=PERSON,
        decision_token=decision.decision_token,
        reactions=[types.REACTION_LIKE],
    )
    await client.recommendation.RecordInteractions(
        pb.RecordInteractionsRequest(interactions=[told, *reactions]), metadata=key
    )
    return bytes(decision.decision_token)


async def test_no_call_leaves_personal_data_or_secrets_in_the_log(server: ServerProcess) -> None:
    """Good calls and bad ones of every RPC, with and without the right key."""
    async with connect(server.target) as client:
        await wait_serving(client)
        token = await a_week(client)
        run = await train(client)
        assert run.status == tpb.TRAINING_RUN_STATUS_COMPLETED, run.error
    known = Known(token, int(time.time()), PERSON.encode(), SHARE)
    broken = fuzzing.field(1, fuzzing.BYTES, b"\xff" + PERSON.encode())
    codes = set()
    with grpc.insecure_channel(server.target) as channel:
        for number, method in enumerate(METHODS):
            good = fuzzing.fine(method.input_type, known, f"{PERSON}-fine-{number}")
            seconds = 0.1 if kind_of(method) is Kind.ENDLESS else 20.0
            cut = () if kind_of(method) is Kind.LONG else (good[5:],)
            for key in KEYS:
                for message in (good, good + broken, *cut):
                    answer = fuzzing.call(channel, method, [message], key, seconds)
                    codes.add(answer.code)
    assert {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT} <= codes
    assert {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED} <= codes
    assert_silent(server, token)


async def test_what_the_database_says_of_a_row_is_not_logged(
    server: ServerProcess, db: asyncpg.Connection
) -> None:
    """Postgres quotes the row that it refuses; the log of server and trainer must not."""
    async with connect(server.target) as client:
        await wait_serving(client)
        token = await a_week(client)
        await db.execute("ALTER TABLE users ADD CONSTRAINT untrained CHECK (trained_through = 0)")
        run = await train(client)
        assert run.status == tpb.TRAINING_RUN_STATUS_FAILED
        assert PERSON not in run.error
        assert "untrained" in run.error

        await db.execute(
            "ALTER TABLE users ADD CONSTRAINT nobody CHECK (user_id = '') NOT VALID",
        )
        stranger = pb.RecordInteractionsRequest(interactions=[logged("new", f"new {PERSON}")])
        call = client.recommendation.RecordInteractions(stranger, metadata=ADMIN)
        failure = await failure_of(call)
        assert failure.code == grpc.StatusCode.INTERNAL
        assert PERSON not in failure.message
    assert_silent(server, token)
    # Yet the log says what went wrong.
    text = server.log.read_text()
    assert 'violates check constraint \\"untrained\\"' in text
    assert 'violates check constraint \\"nobody\\"' in text


LOG_IT = """
import asyncio, gc, logging, sys
import asyncpg, structlog
from recparams_server.observability import logs

url, form, person, *statements = sys.argv[1:]
log = structlog.get_logger()

async def main():
    logs.configure("debug", form)
    connection = await asyncpg.connect(url)
    for statement in statements:
        try:
            if "$1" in statement:
                await connection.fetchval(statement, person)
            else:
                await connection.execute(statement)
        except asyncpg.PostgresError as failure:
            log_in_every_way(failure)
            last = failure
    await connection.close()
    asyncio.get_running_loop().create_task(fail(last))
    await asyncio.sleep(0)
    gc.collect()
    raise last

async def fail(failure):
    raise RuntimeError("nobody waits for it") from failure

def log_in_every_way(failure):
    assert person in str(failure)
    log.warning("described", error=failure, by=type(failure).__name__)
    assert person in str(failure)
    try:
        raise RuntimeError("the first of them") from failure
    except RuntimeError as other:
        log.warning("behind another", error=other)
        log.error("ours", exc_info=ExceptionGroup("both", [other]))
        logging.getLogger("a library").exception("theirs")

asyncio.run(main())
"""
RAISING = """
DO $$ BEGIN
    RAISE EXCEPTION USING ERRCODE = '{}', MESSAGE = '{}', DETAIL = '{}', HINT = '{}';
END $$
"""
QUOTES = {
    "a value that asyncpg cannot encode": "SELECT $1::int",
    "a value that Postgres cannot read": f"SELECT '{PERSON}'::int",
    "a value in the detail": f"INSERT INTO users (user_id) VALUES ('{PERSON}'), ('{PERSON}')",
    "a row in the detail": f"INSERT INTO secrets (name, value) VALUES ('{PERSON}', NULL)",
    "a trigger's message": RAISING.format("P0001", PERSON, "", ""),
    "a trigger's message like a constraint's": RAISING.format("23514", PERSON, "", ""),
    "a trigger's detail": RAISING.format("23505", "", PERSON, ""),
    "a trigger's hint": RAISING.format("P0001", "", "", PERSON),
    "a hint like a statement's that was cancelled": RAISING.format("57014", "", "", PERSON),
}


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_value_that_the_database_refuses_is_not_logged(database_url: str, form: str) -> None:
    """By the service or a library, behind another exception, awaited by nobody, or uncaught."""
    command = [sys.executable, "-c", LOG_IT, database_url, form, PERSON, *QUOTES.values()]
    done = run(*command, cwd=ROOT)
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert text.count("described") == len(QUOTES)
    assert text.count("ours") == text.count("theirs") == len(QUOTES)
    for said in ("the first of them", "nobody waits for it", "uncaught exception"):
        assert said in text
    # What it is stays.
    for said in ("UniqueViolationError 23505: duplicate key value violates", "RaiseError P0001:"):
        assert said in text
    assert PERSON not in text


def test_exceptions_are_logged_as_they_are() -> None:
    """So that one function decides what is written of them: not as text made of them before."""
    for file in (ROOT / "server").rglob("*.py"):
        for call in ast.walk(parsed(file)):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if isinstance(call.func.value, ast.Name) and call.func.value.id == "log":
                given = [ast.unparse(one.value) for one in call.keywords]
                assert not [one for one in given if one.startswith(("repr(", "f'"))], file


SQL_ARGUMENT = {
    "execute": 0,
    "executemany": 0,
    "fetch": 0,
    "fetchrow": 0,
    "fetchval": 0,
    "copy_from_query": 0,
    "cursor": 0,
    "copy_rows": 1,
}
"""Which argument of a function is SQL."""
TAKE_NO_SQL = {"tasks", "profiles", "layout"}
"""What has a `fetch` or an `execute` of another kind."""
PUT_TOGETHER = {
    "f'ALTER TABLE interactions DETACH PARTITION {name} {how}'": "names of pg_class, by a pattern",
    "f'DROP TABLE {name}'": "the same",
    "f'EXPLAIN (FORMAT JSON) {query(rebuild)}'": "one of two texts, by a truth value",
    "query(False, 'count(*)')": "the same, and a constant",
    "query": "put together of columns' names and numbers of settings",
    "f\"SET TRANSACTION SNAPSHOT '{snapshot}'\"": "a name that Postgres gave",
    "text(f'SELECT pg_advisory_xact_lock({MIGRATION_LOCK})')": "a number of this code",
}
"""SQL that is no constant, and why it holds no value of a caller."""


def is_constant(node: ast.expr, function: ast.AST | None) -> bool:
    """Whether text is fixed when a module is imported, so that no caller's value is in it."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name) if name.isupper():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_constant(left, function) and is_constant(right, function)
        case ast.IfExp(body=one, orelse=other):
            return is_constant(one, function) and is_constant(other, function)
        case ast.Name(id=name) if function is not None:
            given = [value for target, value in bound_in(function) if target == name]
            return bool(given) and all(is_constant(value, None) for value in given)
        case ast.Call(func=ast.Name(id="text"), args=[inner]):
            return is_constant(inner, function)
    return False


def bound_in(function: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names that a function assigns or loops over, and what they come from."""
    for node in ast.walk(function):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        value = getattr(node, "iter", getattr(node, "value", None))
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                yield target.id, value


def sql_of(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.AST]]:
    """Every expression that is SQL, and the function or module that it is in."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module):
            continue
        for call in ast.walk(function):
            if not isinstance(call, ast.Call):
                continue
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            of = getattr(getattr(call.func, "value", None), "id", "")
            place = None if of in TAKE_NO_SQL else SQL_ARGUMENT.get(name)
            if place is not None and len(call.args) > place:
                yield call.args[place], function


def put_together(source: str) -> set[str]:
    """SQL that is not fixed, but for what is so in some function around it."""
    tree = parsed(source)
    found = list(sql_of(tree))
    fixed = {id(sql) for sql, function in found if is_constant(sql, function)}
    return {ast.unparse(sql) for sql, _ in found if id(sql) not in fixed}


def test_values_reach_the_database_as_parameters_alone() -> None:
    """SQL is fixed text, but for the exceptions above."""
    sources = [file.read_text() for file in (ROOT / "server").rglob("*.py")]
    assert sum(len(list(sql_of(parsed(source)))) for source in sources) > 100
    found = set().union(*map(put_together, sources))
    assert found == set(PUT_TOGETHER)


def test_sql_that_is_put_together_is_noticed() -> None:
    hostile = "async def f(db, user):\n    {}\n    return await db.fetchval({})"
    for before, sql in (
        ("pass", "f'SELECT {user}'"),
        ("pass", "'SELECT ' + user"),
        ("pass", "'SELECT %s' % user"),
        ("pass", "'SELECT {}'.format(user)"),
        ("query = 'SELECT ' + user", "query"),
    ):
        assert put_together(hostile.format(before, sql)) == {sql}
    assert not put_together(hostile.format("query = SELECT", "query + 'WHERE id = $1', user"))
