"""Evaluation, rollouts and shadowing from the command line, against a real server."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from recparams_server.app import App
from recparams_server.settings import Settings
from tests.faults import SMALL, eventually
from tests.support import ADMIN_KEY, ROOT, Client, connect, in_process, train, wait_serving
from tests.test_cli import Outcome, run
from tests.trust import decide, likes_high_energy, live, set_rollout

PEOPLE = [f"user-{n}" for n in range(300)]
LENIENT = {"gate_interactions": 1, "gate_average_reward": -2.0}


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    return in_process(
        database_url,
        tmp_path,
        **{**SMALL, "gates": "enforce", "exploration": 0.9, "watch_seconds": 3600},
    )


@pytest.fixture
def cli(app: App, client: Client) -> Any:
    """Runs a command against the test's server."""

    async def call(*arguments: str, cwd: Path = ROOT) -> Outcome:
        variables = {"RECPARAMS_ADDRESS": f"127.0.0.1:{app.port}"}
        return await run(*arguments, cwd=cwd, **variables)

    return call


def drafts(folder: Path) -> list[Path]:
    """Pages that were begun."""
    return list(folder.glob(".report*"))


class Page(HTMLParser):
    """What a page refers to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href")
        self.references += [value or "" for name, value in attrs if name in names]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


async def test_a_refused_version_has_its_own_exit_code(cli: Any, client: Client) -> None:
    await live(client, PEOPLE, likes_high_energy)
    outcome = await cli("train", "--wait", "--json")
    assert outcome.code == 6
    said = json.loads(outcome.out.splitlines()[-1])
    assert said["status"] == "TRAINING_RUN_STATUS_COMPLETED"
    assert said["outcome"] == "TRAINING_OUTCOME_REFUSED"
    assert "refused: trained on 300 interactions, at least 1000 are needed" in outcome.err
    shown = await cli("runs", "show", "1")
    assert "FAILED: trained on 300 interactions, at least 1000 are needed" in shown.out
    assert (await cli("runs", "watch", "1")).code == 6
    assert "refused" in (await cli("runs", "list")).out
    told = (await cli("status")).out
    assert "1, completed" in told
    assert "refused: trained on 300 interactions" in told


async def test_versions_that_start_wait_or_are_stored_exit_with_0(
    start_server: Any, tmp_path: Path
) -> None:
    server = start_server(**{**SMALL, "gates": "enforce", "rollout": "auto", **LENIENT})
    variables = {"RECPARAMS_ADDRESS": server.target, "RECPARAMS_ADMIN_KEY": ADMIN_KEY}

    async def trains(*options: str) -> tuple[int, str, str]:
        await live(client, PEOPLE, likes_high_energy)
        done = await run("train", "--wait", "--json", *options, cwd=tmp_path, **variables)
        return done.code, json.loads(done.out.splitlines()[-1])["outcome"], done.err.strip()

    async with connect(server.target) as client:
        await wait_serving(client)
        assert await trains() == (
            0,
            "TRAINING_OUTCOME_STARTED",
            "training run 1 completed, version 1: starts at 10 % of the people: not told from the "
            "active version yet",
        )
        assert await trains() == (
            0,
            "TRAINING_OUTCOME_WAITING",
            "training run 2 completed, version 2: waits for its turn: version 1 is at 10 % of the "
            "people",
        )
        code, outcome, said = await trains("--no-activate")
        assert (code, outcome) == (0, "TRAINING_OUTCOME_STORED")
        assert said.endswith("stored, and served if somebody says so")
        done = await run("train", "--wait", "--json", cwd=tmp_path, **variables)
        assert done.code == 0
        assert "nothing new to learn" in done.err


async def test_an_evaluation_for_people_scripts_and_browsers(
    cli: Any, client: Client, tmp_path: Path
) -> None:
    for _ in range(3):
        await live(client, PEOPLE, likes_high_energy)
    page = tmp_path / "report.html"
    outcome = await cli("evaluate", "--days", "1", "--html", str(page))
    assert outcome.code == 0, outcome.err
    for words in ("rule-based", "random", "snipw", "Objectives"):
        assert words in outcome.out
    assert re.search(r"^evaluated on +900$", outcome.out, re.MULTILINE)
    assert "rule-based - random: " in outcome.out
    text = page.read_text()
    parsed = Page(text)
    assert all(r.startswith(("#", "data:image/png")) for r in parsed.references)
    assert "script" not in parsed.tags
    assert parsed.tags.count("svg") == 6
    everything = " ".join(parsed.words)
    for words in ("900", "rule-based", "random", "engagement", "neuroticism", "high", "afternoon"):
        assert words in everything
    assert drafts(tmp_path) == []

    answer = (await cli("evaluate", "--days", "1", "--policy", "random", "--json")).json
    assert [policy["name"] for policy in answer["policies"]] == ["random"]
    assert answer["policies"][0]["segments"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "best"), "is no version, active, rule-based or random"),
        (("--policy", "99"), "there is no model version 99"),
        (("--confidence", "2"), "confidence: must be from 0.5 to 0.999"),
        (("--html", "/nowhere/report.html"), "/nowhere/report.html: No such file or directory"),
    ],
)
async def test_questions_that_cannot_be_answered(
    cli: Any, arguments: tuple[str, ...], words: str
) -> None:
    outcome = await cli("evaluate", *arguments)
    assert outcome.code in (1, 2)
    assert words in outcome.err


async def test_a_page_about_nothing(cli: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    outcome = await cli("evaluate", "--html", str(page))
    assert outcome.code == 0, outcome.err
    assert "no estimate, the log is of 0 people" in outcome.out
    words = " ".join(Page(page.read_text()).words)
    assert "no interactions" in words
    assert "not enough overlap" in words


async def test_a_rollout_step_by_step(cli: Any, client: Client) -> None:
    await live(client, PEOPLE, likes_high_energy)
    first = await train(client)
    await live(client, PEOPLE, likes_high_energy)
    second = await train(client)
    await set_rollout(client, version=first.model_version, percent=100)

    outcome = await cli("rollout", "set", "--version", str(second.model_version))
    assert outcome.code == 0, outcome.err
    assert f"10 % of the people: version {second.model_version}" in outcome.out
    assert f"90 % of the people: version {first.model_version}" in outcome.out
    outcome = await cli("rollout", "next", "--reason", "all is well")
    assert f"50 % of the people: version {second.model_version}" in outcome.out
    outcome = await cli("rollout", "set", "45%", "--rule-based-percent", "20")
    assert "20 % of the people: the hand-written rules" in outcome.out
    shown = await cli("rollout", "show", "--history")
    assert "all is well" in shown.out
    assert (await cli("rollout", "show", "--json")).json["rollout"]["percent"] == 45

    experiment = await cli("rollout", "experiment")
    assert experiment.code == 0, experiment.err
    assert "rl against previous: undecided, fewer than 100 people in an arm" in experiment.out

    async def three_arms() -> bool:
        return len({a.policy_arm for a in await decide(client, PEOPLE)}) == 3

    await eventually(three_arms)
    many = [f"somebody-{n}" for n in range(1500)]
    await live(client, many, likes_high_energy)
    experiment = await cli("rollout", "experiment")
    assert "at all times with probability 0.975" in experiment.out

    for arguments, words in (
        (("set", "130"), "percent: must be from 0 to 100, not 130"),
        (("set", "--step", "most"), "step: there is no step 'most': canary, half, full, next"),
        (("set", "10", "--step", "half"), "a share or a --step, not both"),
        (("set", "much"), "'much' is not a percentage"),
        (("experiment", "77"), "there is no experiment 77"),
    ):
        outcome = await cli("rollout", *arguments)
        assert (outcome.code, outcome.out) == (2, "")
        assert words in outcome.err


async def test_shadowing(cli: Any, client: Client) -> None:
    await live(client, PEOPLE, likes_high_energy)
    run_ = await train(client)
    assert "shadowed" in (await cli("shadow", "start", str(run_.model_version))).out
    shown = await cli("shadow", "show")
    assert f"version {run_.model_version}" in shown.out
    assert (await cli("shadow", "stop")).out == "nothing is shadowed\n"
    outcome = await cli("shadow", "show")
    assert (outcome.code, outcome.out) == (2, "")


async def test_other_objectives(cli: Any, client: Client) -> None:
    await live(client, PEOPLE, likes_high_energy)
    outcome = await cli(
        "train", "--wait", "--json", "--mode", "rebuild", "--objective", "novelty=0.5"
    )
    assert outcome.code == 0, outcome.err
    assert '"novelty": 0.5' in outcome.out
    for given in ("novelty", "joy=1", "novelty=much"):
        outcome = await cli("train", "--mode", "rebuild", "--objective", given)
        assert outcome.code == 2
        assert "NAME=WEIGHT" in outcome.err
