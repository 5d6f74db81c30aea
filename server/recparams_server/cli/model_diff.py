"""`recparams models diff`: where two versions choose differently, and for whom."""

from itertools import groupby

import click

from recparams.v1 import models_pb2 as pb
from recparams.v1 import models_pb2_grpc as grpc_pb
from recparams.v1 import types_pb2
from recparams_server.cli.connection import admin_call, json_option, server_options
from recparams_server.cli.options import int32, int64
from recparams_server.cli.output import (
    enum_name,
    print_json,
    print_sentence,
    print_table,
    version_name,
    when,
)

LONG_SECONDS = 600.0
DIMENSIONS = ("energy", "diversity", "novelty")


@click.command()
@click.argument("version", type=int64, metavar="A")
@click.argument("other_version", type=int64, metavar="B")
@click.option("--days", type=int32, help="Length of the period that ends now. [default: 7]")
@server_options
@json_option
def diff(
    version: int,
    other_version: int,
    days: int | None,
    address: str,
    admin_key: str | None,
    as_json: bool,
) -> None:
    """Show where version B chooses differently from A, and for how many people.

    It compares them on the people seen in the last days, in the contexts they were seen in: by
    content type, mood, time of day, and thirds of each trait; and shows what is chosen in place of
    what. Exploration is left out. 0 is the hand-written rules.

    \b
    recparams models diff 11 12
    recparams models diff 0 12 --days 28
    """
    answer = admin_call(
        grpc_pb.ModelServiceStub,
        "DiffModels",
        pb.DiffModelsRequest(version=version, other_version=other_version, days=days),
        address,
        admin_key,
        LONG_SECONDS,
    )
    if as_json:
        print_json(answer)
    else:
        _print(answer)


def _print(answer: pb.DiffModelsResponse) -> None:
    before, after = version_name(answer.version), version_name(answer.other_version)
    print_sentence(
        f"{after} against {before}, on {answer.interactions:,} interactions of {answer.people:,} "
        f"people since {when(answer.period_start)}"
    )
    if answer.unknown_state:
        print_sentence(
            f"{answer.unknown_state:,} more are left out: their personality or context is not known"
        )
    if not answer.interactions:
        return
    print_sentence(
        f"differs for {_of(answer.changed_people, answer.people)} of the people, in "
        f"{_of(answer.changed_interactions, answer.interactions)} of the interactions"
    )
    if answer.HasField("changed_states"):
        print_sentence(f"and in {_of(answer.changed_states, answer.states)} of all states")
    if not answer.changed_interactions:
        return
    click.echo("\nWhere:\n")
    print_table(
        ("", "part", "people", "differs for", "interactions", "differs in"),
        (
            (
                "" if position else dimension.replace("_", " "),
                one.value,
                one.people,
                f"{one.changed_people / one.people:.1%}",
                one.interactions,
                f"{one.changed_interactions / one.interactions:.1%}",
            )
            for dimension, parts in groupby(answer.segments, key=lambda one: one.dimension)
            for position, one in enumerate(parts)
        ),
    )
    click.echo("\nWhat (energy, diversity, novelty):\n")
    print_table(
        (before, after, "people", "interactions"),
        (
            (_action(one.before), _action(one.after), one.people, one.interactions)
            for one in answer.changes
        ),
    )


def _of(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part:,} of {whole:,})"


def _action(action: types_pb2.Action) -> str:
    return " ".join(enum_name(action, dimension) for dimension in DIMENSIONS)
