"""Names that an editor completes, and sentences for values of a wrong type or scale."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any, get_args

import pytest

import recparams_client
from recparams_client import (
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    RecParamsClient,
    conversion,
)

SCORES = (75, 60, 40, 80, 30)


@pytest.mark.parametrize(
    ("literal", "names"),
    [
        (recparams_client.ContentType, conversion.CONTENT_TYPES),
        (recparams_client.Mood, conversion.MOODS),
        (recparams_client.TimeOfDay, conversion.TIMES_OF_DAY),
        (recparams_client.Reaction, conversion.REACTIONS),
        (recparams_client.Energy, conversion.ENERGIES),
        (recparams_client.Diversity, conversion.DIVERSITIES),
        (recparams_client.Novelty, conversion.NOVELTIES),
        (recparams_client.PolicyArm, conversion.ARMS),
        (recparams_client.Source, conversion.SOURCES),
    ],
)
def test_literals_are_the_contracts_names(literal: Any, names: dict[int, str]) -> None:
    assert get_args(literal) == tuple(name for _, name in sorted(names.items()) if name)


def reacting(**changes: Any) -> Any:
    with RecParamsClient("127.0.0.1:1") as client:
        given = {"user_id": "ada", "decision_token": b"token", **changes}
        client.record_interactions([Interaction(**given)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: DecisionRequest(7, "music"), "user_id must be str, not int: str(7)"),
        (
            lambda: DecisionRequest("ada", "music", personality={"openness": 75}),
            "of a dict of scores it is PersonalityProfile(**scores)",
        ),
        (lambda: PersonalityProfile("75", 60, 40, 80, 30), "scores must be numbers from 0 to 100"),
        (lambda: PersonalityProfile(None, 60, 40, 80, 30), "scores must be numbers from 0 to 100"),
        (lambda: reacting(reactions="like"), "not a str: ('like',)"),
        (lambda: reacting(user_id=7), "user_id must be str, not int: str(7)"),
        (lambda: reacting(decision_token="t"), "decision_token must be bytes, not str"),
    ],
)
def test_a_wrong_type_has_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(TypeError, match=re.escape(says)):
        make()


def test_profiles_are_checked_as_people_are() -> None:
    with RecParamsClient("127.0.0.1:1") as client:
        with pytest.raises(TypeError, match=re.escape("PersonalityProfile(**scores)")):
            client.put_personality_profiles({"ada": {"openness": 75}})  # type: ignore[dict-item]
        with pytest.raises(TypeError, match="user_id must be str"):
            client.put_personality_profiles(
                {7: PersonalityProfile(*SCORES)}  # type: ignore[dict-item]
            )


def test_scores_of_another_scale_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="from 0 to 100, and these look as if from 0 to 1") as told:
        PersonalityProfile(0.75, 0.6, 0.4, 0.8, 0.3)
    assert told[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scores in (SCORES, (0, 0, 0, 0, 0), (1, 0, 1, 1, 1), (0.5, 2, 0, 0, 0)):
            PersonalityProfile(*scores)
    with pytest.raises(ValueError, match="content_type must be one of music, video, game"):
        conversion.request_message(DecisionRequest("a", "opera", time_of_day="night"))


def test_mypy_knows_the_names(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from recparams_client import DecisionRequest, Recommendation\n"
        "DecisionRequest('ada', 'music', 'calm', 'evening')\n"
        "DecisionRequest('ada', 'opera', 'calm', 'evening')\n"
        "def f(one: Recommendation) -> bool:\n"
        "    return one.energy == 'loud'\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", program]
    done = subprocess.run(
        [*command, f"--cache-dir={tmp_path / 'cache'}"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    found = [line.split(": ", 1)[0] for line in done.stdout.splitlines() if ": error" in line]
    assert found == [f"{program}:3", f"{program}:5"], done.stdout


def test_the_version_is_the_distributions() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", recparams_client.__version__)
    with pytest.raises(AttributeError, match="no attribute 'verison'"):
        getattr(recparams_client, "verison")  # noqa: B009
