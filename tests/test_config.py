"""Settings: where they come from, what they refuse, and how a server starts with them."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from recparams_server.cli import main
from recparams_server.settings import Settings
from recparams_server.settings.errors import settings_problems
from tests.processes import run
from tests.support import ROOT, environment


def test_the_defaults_are_the_seeds() -> None:
    settings = Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 50051)
    assert settings.exploration == "posterior"
    learner = settings.hyperparameters()
    assert (learner.learning_rate, learner.discount_factor) == (0.1, 0.95)
    assert (learner.exploration_rate, learner.min_exploration_rate) == (0.3, 0.05)
    assert learner.exploration_decay == 0.995
    assert settings.space().n_states == 300_000
    assert settings.reward_weights().share == 0.8
    assert (settings.days_back, settings.min_interactions_per_user) == (7, 5)


def test_options_beat_variables_beat_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nbins = 3\nmoods = ["calm", "happy"]\nreward_like = 2.5\n')
    monkeypatch.setenv("RECPARAMS_CONFIG", str(file))
    monkeypatch.setenv("RECPARAMS_PORT", "2")
    monkeypatch.setenv("RECPARAMS_BINS", "4")
    monkeypatch.setenv("RECPARAMS_TIMES_OF_DAY", "morning, night")
    settings = Settings(port=3)
    assert (settings.port, settings.bins) == (3, 4)
    assert settings.moods == ("calm", "happy")
    assert settings.times_of_day == ("morning", "night")
    assert settings.reward_like == 2.5


@pytest.mark.parametrize("name", ["DATABASE_URL", "RECPARAMS_DATABASE_URL"])
def test_the_database_url_has_two_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "postgresql://somewhere/db")
    url = Settings().database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://somewhere/db"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"bins": 0}, "bins"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"discount_factor": 1}, "discount_factor"),
        ({"min_exploration_rate": 0.5}, "min_exploration_rate"),
        ({"moods": "calm,calm"}, "moods"),
        ({"exploration": 1.5}, "exploration"),
        ({"exploration": "sometimes"}, "exploration"),
        ({"reward_like": float("nan")}, "like"),
        ({"token_key": "short"}, "token_key"),
        ({"database_url": "postgresql://u:p/w@db:5432/x"}, "database_url"),
        ({"database_url": "mysql://db/x"}, "database_url"),
        ({"prot": 1}, "prot"),
        ({"schedule": "mondays"}, "schedule must be a cron expression"),
        ({"schedule": "0 25 * * 1"}, "Bad hour"),
        ({"schedule": "0h"}, "schedule must be"),
        ({"schedule": "0 0 31 2 *"}, "Bad day-of-month"),
        ({"schedule": "0 0 */30 2 1#5"}, "has no instant in the next 50 years"),
        ({"schedule": "0 1 * * 1", "schedule_time_zone": "Mars"}, "schedule_time_zone 'Mars'"),
        ({"schedule_grace_seconds": 0}, "schedule_grace_seconds"),
        ({"workers": 0}, "workers"),
        ({"workers": 3, "metrics_port": 65534}, "metrics_port"),
        ({"environment": "production"}, "admin_key is required"),
        ({"environment": "production", "admin_key": "short"}, "admin_key"),
        (
            {"environment": "production", "admin_key": "admin-dev-key-change-in-production"},
            "well-known",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(**given)


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        bins=3,
        moods="calm,happy",
        exploration=0.25,
        admin_key="0123456789abcdef",
        settling_seconds=0,
        environment="production",
        database_url="postgresql://first/db",
    )
    for name, value in settings.to_environment("postgresql://second/db").items():
        monkeypatch.setenv(name, value)
    child = Settings()
    assert child.model_dump(exclude={"database_url"}) == settings.model_dump(
        exclude={"database_url"}
    )
    assert child.database_url is not None
    assert child.database_url.get_secret_value() == "postgresql://second/db"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--environment", "production"], "admin_key is required outside development"),
        (["--port", "many"], "port"),
        (["--moods", "calm,bored"], "bored"),
        (["--host", "256.0.0.1"], "cannot listen"),
    ],
)
def test_a_server_that_cannot_start_says_why(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    env = environment("postgresql://nowhere/db", data_dir=tmp_path)
    del env["RECPARAMS_ADMIN_KEY"]
    done = run(sys.executable, "-m", "recparams_server.cli", "serve", *arguments, env=env, cwd=ROOT)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("BINS", "many", "bins: must be a whole number"),
        ("LEARNING_RATE", "fast", "learning_rate: must be a number"),
        ("METRICS_PORT", "65536", "metrics_port: must be 65535 or less"),
        ("WORKERS", "0", "workers: must be 1 or more"),
        ("ROLLOUT_STEPS", "4", "rollout_steps must be as in canary=10,half=50,full=100"),
        ("LOG_LEVEL", "loud", "log_level: must be debug, info, warning or error"),
        ("PORT", "tcp://10.0.0.1:50051", "enableServiceLinks: false"),
    ],
)
def test_wrong_settings_are_told_in_words(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(f"RECPARAMS_{name}", value)
    with pytest.raises(ValidationError) as failure:
        Settings()
    (told,) = settings_problems(failure.value, Settings.model_fields)
    assert said in told
    assert value not in told


def test_an_exploration_that_cannot_be_is_told_once() -> None:
    with pytest.raises(ValidationError) as failure:
        Settings(exploration="sometimes")
    (told,) = settings_problems(failure.value, Settings.model_fields)
    assert told.startswith("exploration: must be off")
    assert told.endswith("or a number")


def test_names_and_files_that_are_not_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError) as failure:
        Settings(prot=1)
    told = settings_problems(failure.value, Settings.model_fields)
    assert told == ["prot: is no setting; did you mean port?"]
    file = tmp_path / "settings.toml"
    # The command sets it; so it is as before in the end.
    monkeypatch.setenv("RECPARAMS_CONFIG", "")
    for text, said in (
        ("port = \n", "is no TOML file"),
        ('colour = "red"', "colour: is no setting"),
    ):
        file.write_text(text)
        told = CliRunner().invoke(main, ["serve", "--config", str(file)])
        assert (told.exit_code, said in told.stderr) == (2, True)
    monkeypatch.setenv("RECPARAMS_CONFIG", str(tmp_path / "none.toml"))
    gone = CliRunner().invoke(main, ["serve"])
    assert (gone.exit_code, "there is no file" in gone.stderr) == (2, True)
    misspelt = CliRunner().invoke(main, ["serv"])
    assert "Did you mean 'serve'?" in misspelt.stderr


def test_empty_variables_are_absent_and_words_have_any_case(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"RECPARAMS_{name.upper()}", "")
    assert Settings().port == 50051
    monkeypatch.setenv("RECPARAMS_LOG_LEVEL", "INFO")
    monkeypatch.setenv("RECPARAMS_ROLLOUT", "Staged")
    assert (Settings().log_level, Settings().rollout) == ("info", "staged")


def test_every_setting_has_an_option_with_help() -> None:
    done = run(sys.executable, "-m", "recparams_server.cli", "serve", "--help", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in done.stdout
        assert field.description
