"""Requests of jobs as JSON and back."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from recparams_rl.learners.registry import LEARNERS
from recparams_rl.objectives import Objectives
from recparams_server.jobs.requests import ACTIVE, RAY, EvaluationRequest, RunRequest

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)


def run_request(algorithm: str) -> RunRequest:
    return RunRequest(
        rebuild=True,
        days_back=28,
        min_interactions_per_user=3,
        hyperparameters=LEARNERS[algorithm].Settings(learning_rate=0.1 + 0.2),
        as_of=NOW,
        activate=False,
        objectives=Objectives(novelty=0.3),
        apart=True,
        algorithm=algorithm,
        engine=RAY,
        export_folder="/exports/1",
    )


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_run_request_comes_back_as_it_was(algorithm: str) -> None:
    wanted = run_request(algorithm)
    found = RunRequest.from_dict(json.loads(json.dumps(wanted.to_dict())))
    assert found == wanted
    assert type(found.hyperparameters) is LEARNERS[algorithm].Settings


def test_what_a_stored_run_request_leaves_out_is_the_default() -> None:
    stored = {
        "rebuild": False,
        "days_back": None,
        "min_interactions_per_user": 5,
        "hyperparameters": {"learning_rate": 0.2},
        "as_of": "2026-03-01T12:30:15.123456+00:00",
        "activate": True,
    }
    found = RunRequest.from_dict(stored)
    settings = LEARNERS["q_learning"].Settings(learning_rate=0.2)
    assert found == RunRequest(False, None, 5, settings, NOW, True)


def test_a_run_request_of_a_newer_release_is_refused() -> None:
    newer = {**run_request("q_learning").to_dict(), "priority": 1}
    with pytest.raises(ValidationError, match="priority"):
        RunRequest.from_dict(newer)


def test_an_evaluation_request_comes_back_as_it_was() -> None:
    wanted = EvaluationRequest(
        NOW, NOW + timedelta(microseconds=1), (7, ACTIVE), confidence=0.3 + 0.6
    )
    assert EvaluationRequest.from_json(wanted.to_json()) == wanted
