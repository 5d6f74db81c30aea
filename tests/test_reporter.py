"""Interactions reported in the background, to a real server that comes and goes."""

import asyncio
import sys
import threading
import time
from collections.abc import Sequence

import asyncpg
import pytest

from recparams_client import (
    DecisionRequest,
    Interaction,
    InteractionReporter,
    PersonalityProfile,
    RecParamsClient,
)
from recparams_server.app import App
from recparams_server.settings import Settings
from tests.processes import run
from tests.support import Client, connect, wait_serving

ASKED = DecisionRequest(
    "ada", "music", "calm", "evening", personality=PersonalityProfile(75, 60, 40, 80, 30)
)


async def made(app: App, count: int) -> list[Interaction]:
    """Interactions about a decision."""
    with RecParamsClient(f"127.0.0.1:{app.port}", decision_timeout=30) as client:
        decision = await asyncio.to_thread(client.get_recommendation_params, ASKED)
    return [Interaction("ada", decision.decision_token, ("like",)) for _ in range(count)]


class GivenUp:
    def __init__(self) -> None:
        self.found: list[tuple[Interaction, str]] = []

    def __call__(self, interactions: Sequence[Interaction], why: str) -> None:
        self.found += [(one, why) for one in interactions]
        raise RuntimeError("a callback that fails must not stop the reporter")


@pytest.mark.usefixtures("client")
async def test_what_is_reported_is_stored_and_what_is_refused_is_handed_back(
    app: App, db: asyncpg.Connection
) -> None:
    good = await made(app, 1200)
    refused = Interaction("eve", good[0].decision_token, ("like",))
    fallback = Interaction("ada", b"", ("like",))
    misspelt = Interaction("ada", good[0].decision_token, ("lke",))
    given_up = GivenUp()
    with (
        RecParamsClient(f"127.0.0.1:{app.port}") as client,
        InteractionReporter(client, on_undelivered=given_up) as reporter,
    ):
        for one in (*good[:100], refused, fallback, *good[100:], misspelt):
            assert reporter.report(one)
        assert await asyncio.to_thread(reporter.flush, 20)
        assert (reporter.delivered, reporter.undelivered) == (1200, 3)
        assert {one for one, _ in given_up.found} == {refused, fallback, misspelt}
        assert "for this user_id" in next(why for one, why in given_up.found if one is refused)
        assert await db.fetchval("SELECT count(*) FROM interactions") == 1200
        assert reporter.report(good[0])
        assert await asyncio.to_thread(reporter.flush, 20)
    assert await db.fetchval("SELECT count(*) FROM interactions") == 1200


async def test_what_is_reported_while_the_server_is_away_waits_for_it(
    settings: Settings, app: App, client: Client, db: asyncpg.Connection
) -> None:
    interactions = await made(app, 60)
    remote = RecParamsClient(f"127.0.0.1:{app.port}", write_timeout=0.5)
    given_up = GivenUp()
    reporter = InteractionReporter(remote, capacity=50, interval=0.01, on_undelivered=given_up)
    port = app.port
    await app.stop()
    taken = [reporter.report(one) for one in interactions]
    assert taken == [True] * 50 + [False] * 10
    assert [one for one, _ in given_up.found] == interactions[50:]
    assert not await asyncio.to_thread(reporter.flush, 0.3)

    back = App(settings.model_copy(update={"port": port}))
    await back.start()
    try:
        async with connect(f"127.0.0.1:{port}") as again:
            await wait_serving(again)
        assert await asyncio.to_thread(reporter.flush, 20)
        assert (reporter.delivered, reporter.undelivered) == (50, 10)
        assert await db.fetchval("SELECT count(*) FROM interactions") == 50
        await asyncio.to_thread(reporter.close)
        assert not reporter.report(interactions[0])
    finally:
        remote.close()
        await back.stop()


def test_closing_does_not_wait_for_ever_for_a_server_that_is_away() -> None:
    given_up = GivenUp()
    with RecParamsClient("127.0.0.1:1", write_timeout=5) as client:
        reporter = InteractionReporter(client, flush_seconds=0.3, on_undelivered=given_up)
        assert reporter.report(Interaction("ada", b"token", ("like",)))
        began = time.monotonic()
        reporter.close()
        assert time.monotonic() - began < 3
    assert reporter.undelivered == 1
    assert "closed before" in given_up.found[0][1]
    assert not any(one.name == "recparams-report" for one in threading.enumerate())


PROGRAM = """
import sys
from recparams_client import *
client = RecParamsClient(sys.argv[1], decision_timeout=30)
local = LocalPolicy(sys.argv[1])
reporter = InteractionReporter(client, interval=60)
assert local.wait(10)
asked = DecisionRequest("ada", "music", "calm", "evening",
                        personality=PersonalityProfile(75, 60, 40, 80, 30))
for _ in range(20):
    reporter.report(Interaction("ada", local.get_recommendation_params(asked).decision_token,
                                ("like",)))
"""


@pytest.mark.usefixtures("client")
async def test_the_end_of_a_program_sends_what_is_left(app: App, db: asyncpg.Connection) -> None:
    command = [sys.executable, "-c", PROGRAM, f"127.0.0.1:{app.port}"]
    done = await asyncio.to_thread(run, *command)
    assert done.returncode == 0, done.stderr
    assert await db.fetchval("SELECT count(*) FROM interactions") == 20
