"""An evaluation on the terminal and as a page: names are text, and what is absent is said."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import training_pb2 as pb
from recparams_server.cli import evaluate as command
from recparams_server.cli.charts import REFUSED
from recparams_server.cli.output import print_estimates
from recparams_server.cli.report import render
from recparams_server.cli.run_output import print_run
from tests.test_cli_trust import Page

HOSTILE = "<script>alert(1)</script> $\\frac{1}{0}$ & {{ 7 * 7 }} --> ]]>"
ESTIMATORS = ("dm", "ipw", "snipw", "dr", "switch-dr")
OBJECTIVES = ("engagement", "diversity", "novelty")
SECTIONS = (
    "What each policy would have been worth",
    "Differences",
    "Objectives",
    "Reward over time",
    "Where the interactions lie",
    "What would be chosen",
    "By segment",
    "How to read it",
)


def estimate(name: str, value: float) -> epb.Estimate:
    interval = epb.Interval(method="normal", low=value - 0.1, high=value + 0.1)
    return epb.Estimate(
        estimator=name, value=value, intervals=[interval], effective_sample_size=77.0
    )


def refused(name: str, reason: str) -> epb.Estimate:
    return epb.Estimate(estimator=name, reason=reason)


def policy(name: str, *estimates: epb.Estimate) -> epb.PolicyEvaluation:
    dr = next(one for one in estimates if one.estimator == "dr")
    return epb.PolicyEvaluation(
        name=name,
        estimates=estimates,
        segments=[epb.SegmentEvaluation(dimension="mood", value="calm", estimates=estimates)],
        training_known=True,
        action_shares=[1 / 27] * 27,
        objectives=[epb.ObjectiveEstimate(objective=o, estimate=dr) for o in OBJECTIVES],
        pareto_optimal=dr.HasField("value"),
    )


def answer(name: str = "mine") -> pb.EvaluateResponse:
    """One policy that has estimates and one that was never tried."""
    reason = f"{name} was never tried"
    return pb.EvaluateResponse(
        interactions=100,
        users=40,
        average_reward=0.5,
        evaluated=88,
        unknown_propensity=7,
        unknown_state=3,
        trained_excluded=2,
        policies=[
            policy(name, *(estimate(one, 0.25) for one in ESTIMATORS)),
            policy("other", *(refused(one, reason) for one in ESTIMATORS)),
        ],
        differences=[
            epb.PolicyDifference(policy=name, other="other", difference=refused("dr", reason)),
            epb.PolicyDifference(policy=name, other="b", difference=estimate("dr", 0.125)),
        ],
        daily=[epb.DailyReward(day="2026-03-01", arm=name, interactions=9, average_reward=0.1)],
        coverage=[
            epb.ContextCoverage(content_type=name, mood=name, time_of_day=name, interactions=3)
        ],
        logged_action_shares=[1.0] + [0.0] * 26,
        logged_objectives=dict.fromkeys(OBJECTIVES, 0.4),
    )


def words(message: pb.EvaluateResponse) -> list[str]:
    return [word.strip() for word in Page(render(message, 0.95)).words]


def test_names_are_text() -> None:
    page = Page(render(answer(HOSTILE), 0.95))
    assert "script" not in page.tags
    assert sum(HOSTILE in word for word in page.words) >= 8
    assert "49" not in "".join(word for word in page.words if "alert" in word)


def test_every_figure_is_there() -> None:
    everything = " ".join(words(answer()))
    for expected in (
        *SECTIONS,
        *ESTIMATORS,
        *OBJECTIVES,
        "95 % intervals",
        "0.250 [0.150, 0.350]",
        "0.125 [0.025, 0.225]",
        "other: no estimate, mine was never tried",
        "mine - other",
        "dashed: what was logged, 0.500",
        "7 without a propensity",
        "3 whose personality or context is unknown",
        "2\nthat a version was trained on",
        "77",
    ):
        assert expected in everything


def test_what_is_refused_has_no_number() -> None:
    shown = words(answer())
    # Five estimators and the one to go by, one difference, three objectives, one segment.
    assert shown.count(REFUSED) == 11


def lead(*differences: epb.PolicyDifference) -> list[str]:
    page = Page(render(pb.EvaluateResponse(differences=differences), 0.95))
    text = "".join(page.words)
    return [line for line in text.splitlines() if "the rules" in line and line.endswith(".")]


def difference(policy: str, other: str, value: float, low: float, high: float) -> Any:
    found = epb.Estimate(estimator="dr", value=value)
    found.intervals.add(method="normal", low=low, high=high)
    return epb.PolicyDifference(policy=policy, other=other, difference=found)


def test_it_opens_with_what_a_version_is_worth() -> None:
    better = difference("version 5", "rule-based", 0.5, 0.44, 0.55)
    told = "Version 5 is worth 0.50 more than the rules a recommendation, 0.44 to 0.55."
    random = difference("rule-based", "random", 0.6, 0.5, 0.7)
    assert lead(better, random) == [told]
    # The other way round it is the same.
    assert lead(difference("rule-based", "version 5", -0.5, -0.55, -0.44)) == [told]
    assert lead(difference("version 5", "rule-based", -0.5, -0.55, -0.44)) == [
        "Version 5 is worth 0.50 less than the rules a recommendation, 0.44 to 0.55."
    ]
    assert lead(difference("version 5", "rule-based", 0.1, -0.1, 0.3)) == [
        "Version 5 cannot be told from the rules: +0.10 reward a recommendation, -0.10 to +0.30."
    ]
    unknown = epb.PolicyDifference(
        policy="version 5", other="rule-based", difference=refused("dr", "nothing was tried")
    )
    assert lead(unknown) == ["Version 5 cannot be compared with the rules: nothing was tried."]


def test_a_day_that_is_not_over_is_marked() -> None:
    message = answer()
    message.period_end.FromJsonString("2026-03-01T12:00:00Z")
    assert "the day is not over" in render(message, 0.95)
    message.period_end.FromJsonString("2026-03-02T00:00:00Z")
    assert "the day is not over" not in render(message, 0.95)


def test_it_fits_a_phone_and_either_theme() -> None:
    page = render(answer(), 0.95)
    assert "prefers-color-scheme: dark" in page
    assert "color-scheme: light dark" in page
    assert "width=device-width" in page
    # Nothing is painted behind the pictures, and what is wide scrolls by itself.
    assert not re.search("<path[^>]*fill: #ffffff", page)
    outside = re.sub(r'<div class="wide">.*?</div>', "", page, flags=re.DOTALL)
    assert outside.count("<svg") == 2
    assert "<table" not in outside


def test_nothing_comes_from_outside() -> None:
    page = render(answer(), 0.95)
    parsed = Page(page)
    assert not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert all(one.startswith(("#", "data:image/png")) for one in parsed.references)
    assert all(one.startswith("#") for one in re.findall(r"url\((.*?)\)", page))
    assert "@import" not in page


def test_a_page_about_nothing() -> None:
    shown = words(pb.EvaluateResponse())
    assert shown.count("no interactions") == 3
    assert set(SECTIONS) <= set(shown)
    assert "No segments." in shown


def test_contexts_are_in_the_usual_order() -> None:
    message = answer()
    del message.coverage[:]
    for mood, time in (("stressed", "night"), ("neutral", "dawn"), ("happy", "morning")):
        message.coverage.add(content_type="music", mood=mood, time_of_day=time, interactions=1)
    shown = words(message)
    names = ("morning", "night", "dawn"), ("neutral", "happy", "stressed")
    for expected in names:
        assert [word for word in shown if word in expected] == list(expected)
    # Eight moods at five times of day, dawn included.
    assert shown.count("none") == 8 * 5 - 3


def test_days_do_not_overlap() -> None:
    message = answer()
    for day in range(2, 32):
        message.daily.add(day=f"2026-03-{day:02}", arm="rl", average_reward=0.2)
    days = [word for word in words(message) if word.startswith("2026-03-")]
    assert days[0] == "2026-03-01"
    assert 4 <= len(days) <= 8


def test_one_answer_gives_one_page() -> None:
    assert render(answer(), 0.95) == render(answer(), 0.95)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    """The command, with a server that always gives the same answer."""
    monkeypatch.setattr(command, "admin_call", lambda *_: answer())
    return CliRunner().invoke(command.evaluate, arguments)


def test_the_terminal_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = ask(monkeypatch)
    assert outcome.exit_code == 0
    for expected in (*ESTIMATORS, *OBJECTIVES, "mine - b: +0.1250", "77"):
        assert expected in outcome.stdout
    assert outcome.stdout.count("\nother: no estimate, mine was never tried") == 1


def test_a_page_is_written_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    outcome = ask(monkeypatch, "--json", "--confidence", "0.9", "--html", str(file))
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("{") and outcome.stdout.endswith("}\n")
    assert "90 % intervals" in file.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [file]

    file = tmp_path / "none" / "report.html"
    outcome = ask(monkeypatch, "--html", str(file))
    assert outcome.exit_code == 1
    assert outcome.stderr == f"recparams: {file}: No such file or directory\n"
    assert "mine - b" in outcome.stdout, "what took long to find out is not lost"


def test_what_a_page_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    outcome = ask(monkeypatch, "--html", str(tmp_path / "report.html"))
    assert outcome.exit_code == 1
    assert outcome.stderr == "recparams: --html needs more: pip install 'recparams[report]'\n"
    assert ask(monkeypatch).exit_code == 0, "the terminal needs neither"


def test_a_page_tells_what_learning_is_worth() -> None:
    told = answer()
    assert "What learning is worth" not in render(told, 0.95)
    told.learning_gain.MergeFrom(
        epb.LearningGain(
            difference=0.25, low=0.125, high=0.375, confidence=0.95, rule_based_users=140
        )
    )
    page = html.unescape(render(told, 0.95))
    assert "What learning is worth" in page
    assert "+0.2500 reward an interaction against the rules (+0.1250 to +0.3750" in page
    told.learning_gain.ClearField("low")
    assert "too few people for an interval" in render(told, 0.95)


def test_a_run_shows_what_it_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    run = pb.TrainingRun(gates=[epb.Gate(name="coverage", explanation="too few states")])
    print_run(run)
    assert "Held out" not in capsys.readouterr().out
    run.holdout.MergeFrom(
        epb.HoldoutEvaluation(
            interactions=500, policies=answer().policies, differences=answer().differences
        )
    )
    print_run(run)
    shown = capsys.readouterr().out
    for expected in ("gate coverage", "FAILED: too few states", "500 interactions", "mine - b"):
        assert expected in shown


def test_intervals_fit_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    print_estimates(answer("version 1234 (active)").policies)
    shown = capsys.readouterr().out
    assert shown.count("[0.150, 0.350]") == len(ESTIMATORS)
    assert "…" not in shown
