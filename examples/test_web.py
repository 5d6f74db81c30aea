"""How a backend is tested with recparams_client.testing: no server, no database, no mocks.

`recparams` is a fixture of recparams_client.testing.fixtures, which a conftest.py asks for by
``pytest_plugins = ["recparams_client.testing.fixtures"]``.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from examples.web import make_app
from recparams_client.testing import FakeServer, recommendation

ADA = {
    "user_id": "ada",
    "mood": "calm",
    "time_of_day": "evening",
    "personality": {
        "openness": 75,
        "conscientiousness": 60,
        "extraversion": 40,
        "agreeableness": 80,
        "neuroticism": 30,
    },
}
LIKE = {"user_id": "ada", "reactions": ["like", "complete"], "completion_rate": 1.0}


@pytest.fixture
def web(recparams: FakeServer) -> Iterator[TestClient]:
    with TestClient(make_app(recparams.address)) as client:
        wait_for_ready(client)
        yield client


def wait_for_ready(web: Any) -> None:
    """Connects, for which the first decision would have 50 ms otherwise."""
    web.portal.call(web.app.state.recparams.wait_for_ready)


def test_people_get_what_was_decided_for_them(recparams: FakeServer, web: TestClient) -> None:
    recparams.will_decide(recommendation("low", "diverse", "exploratory"))
    answer = web.post("/playlists", json=ADA)
    assert answer.json()["titles"][0] == "Harbour at Six"
    (asked,) = recparams.requests
    assert (asked.user_id, asked.content_type, asked.mood) == ("ada", "music", "calm")
    assert asked.personality is not None and asked.personality.openness == 75


def test_their_reactions_are_recorded(recparams: FakeServer, web: Any) -> None:
    decision = web.post("/playlists", json=ADA).json()["decision"]
    assert web.post("/reactions", json={**LIKE, "decision": decision}).status_code == 202
    assert web.app.state.reporter.flush(10)
    (recorded,) = recparams.interactions
    assert (recorded.user_id, recorded.reactions) == ("ada", ("like", "complete"))
    assert recorded.completion_rate == 1.0


def test_without_recparams_it_goes_on(recparams: FakeServer, web: TestClient) -> None:
    with recparams.away():
        answer = web.post("/playlists", json=ADA)
    assert answer.json()["titles"] and answer.json()["decision"] == ""
    assert web.post("/reactions", json={**LIKE, "decision": ""}).status_code == 202
    assert recparams.interactions == []


def test_what_recparams_does_not_know_is_refused(recparams: FakeServer, web: TestClient) -> None:
    assert web.post("/playlists", json={**ADA, "mood": "bored"}).status_code == 422
    assert web.post("/reactions", json={**LIKE, "decision": "", "reactions": ["yawn"]}).is_error
    assert recparams.requests == []


def test_what_is_left_is_sent_at_the_end(recparams: FakeServer) -> None:
    with TestClient(make_app(recparams.address)) as web:
        wait_for_ready(web)
        decision = web.post("/playlists", json=ADA).json()["decision"]
        web.post("/reactions", json={**LIKE, "decision": decision})
    assert len(recparams.interactions) == 1
