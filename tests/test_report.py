"""The page of an evaluation: names are text, whatever they are, and it is the same every time."""

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import training_pb2 as pb
from server.cli.report import render
from tests.test_cli_trust import Page

HOSTILE = "<script>alert(1)</script> $\\frac{1}{0}$ & {{ 7 * 7 }}"


def estimate(name: str, value: float) -> epb.Estimate:
    interval = epb.Interval(method="normal", low=value - 0.1, high=value + 0.1)
    return epb.Estimate(estimator=name, value=value, intervals=[interval], interactions=100)


def answer(name: str) -> pb.EvaluateResponse:
    refused = epb.Estimate(estimator="dr", reason=f"{name} was never tried")
    return pb.EvaluateResponse(
        interactions=100,
        average_reward=0.5,
        policies=[
            epb.PolicyEvaluation(
                name=name,
                estimates=[estimate("dm", 0.25), refused],
                segments=[
                    epb.SegmentEvaluation(
                        dimension="mood", value=name, estimates=[estimate("dr", 0.125)]
                    )
                ],
                action_shares=[1 / 27] * 27,
                objectives=[epb.ObjectiveEstimate(objective="engagement", estimate=refused)],
            )
        ],
        differences=[epb.PolicyDifference(policy=name, other="b", difference=refused)],
        daily=[epb.DailyReward(day="2026-03-01", arm=name, interactions=9, average_reward=0.1)],
        coverage=[
            epb.ContextCoverage(content_type=name, mood=name, time_of_day=name, interactions=3)
        ],
    )


def test_names_are_text() -> None:
    page = Page(render(answer(HOSTILE)))
    assert "script" not in page.tags
    assert sum(HOSTILE in word for word in page.words) >= 8
    assert "49" not in "".join(word for word in page.words if "alert" in word)


def test_every_figure_is_there() -> None:
    words = " ".join(Page(render(answer("mine"))).words)
    for expected in (
        "0.125 [0.025, 0.225]",
        "not enough overlap",
        "mine was never tried",
        "mine - b",
    ):
        assert expected in words


def test_one_answer_gives_one_page() -> None:
    assert render(answer("mine")) == render(answer("mine"))
