"""`recparams recommend`: one decision, as a backend would ask for it."""

from datetime import UTC, datetime

import click

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import recommendation_pb2_grpc as grpc_pb
from recparams.v1 import types_pb2 as types
from recparams_rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, TRAITS
from recparams_server.cli.connection import (
    SECONDS,
    admin_metadata,
    channel,
    json_option,
    server_options,
)
from recparams_server.cli.output import enum_name, print_facts, print_json
from recparams_server.contract.enums import enum_number

DIMENSIONS = ("energy", "diversity", "novelty")


def trait_options(command: click.decorators.FC) -> click.decorators.FC:
    """Adds an option for each of the five scores."""
    for trait in reversed(TRAITS):
        command = click.option(f"--{trait}", type=float, help="0 to 100.")(command)
    return command


@click.command()
@click.argument("user_id")
@click.option(
    "--content-type", type=click.Choice(CONTENT_TYPES), default="music", show_default=True
)
@click.option("--mood", type=click.Choice(MOODS), default="neutral", show_default=True)
@click.option("--time-of-day", type=click.Choice(TIMES_OF_DAY), help="[default: now, in UTC]")
@trait_options
@server_options
@json_option
def recommend(
    user_id: str,
    content_type: str,
    mood: str,
    time_of_day: str | None,
    address: str,
    admin_key: str | None,
    as_json: bool,
    **traits: float | None,
) -> None:
    """Ask for one person's recommendation parameters.

    Without the five scores the stored profile is used.

    \b
    recparams recommend ada --mood calm --time-of-day evening \\
        --openness 75 --conscientiousness 60 --extraversion 40 --agreeableness 80 --neuroticism 30
    """
    request = pb.GetRecommendationParamsRequest(
        user_id=user_id,
        content_type=enum_number(types.ContentType, content_type),
        mood=enum_number(types.Mood, mood),
    )
    if any(score is not None for score in traits.values()):
        request.personality.CopyFrom(types.PersonalityProfile(**traits))
    if time_of_day is None:
        request.timestamp.FromDatetime(datetime.now(UTC))
    else:
        request.time_of_day = enum_number(types.TimeOfDay, time_of_day)
    with channel(address) as opened:
        answer = grpc_pb.RecommendationServiceStub(opened).GetRecommendationParams(
            request, metadata=admin_metadata(admin_key), timeout=SECONDS
        )
    if as_json:
        print_json(answer)
        return
    version = answer.model_version or "none: the hand-written rules"
    print_facts(
        [
            *((field.name, value) for field, value in answer.params.ListFields()),
            (
                "action",
                " ".join(enum_name(answer.action, d) for d in ("energy", "diversity", "novelty")),
            ),
            ("model version", version),
            ("source", enum_name(answer, "source")),
            ("propensity", answer.propensity),
            ("fallback reason", enum_name(answer, "fallback_reason")),
        ]
    )
