"""A training run as text for people."""

import click

from recparams.v1 import evaluation_pb2
from recparams.v1 import training_pb2 as pb
from recparams_server.cli.output import (
    enum_name,
    print_differences,
    print_estimates,
    print_facts,
    print_sentence,
    when,
)


def _window_start(run: pb.TrainingRun) -> str:
    return when(run.window_start) if run.HasField("window_start") else "all that is due,"


def _served(run: pb.TrainingRun) -> str:
    return f"to {run.served_percent:g} % of the people" if run.served_percent else "to nobody"


def print_run(run: pb.TrainingRun) -> None:
    """Prints a run for people."""
    facts: list[tuple[str, object]] = [
        ("run", run.run_id),
        ("status", enum_name(run, "status")),
        ("outcome", run.outcome_reason or "-"),
        ("mode", enum_name(run, "mode")),
        ("window", f"{_window_start(run)} to {when(run.window_end)}"),
        ("started", when(run.started_at)),
        ("finished", when(run.finished_at)),
        ("people", run.users_trained),
        ("interactions", f"{run.interactions_trained} ({run.interactions_waiting} waiting)"),
        ("average reward", run.average_reward),
        ("states visited", f"{run.statistics.total_states} ({run.statistics.coverage:.2%})"),
        ("model version", run.model_version or "none: nothing new to learn"),
        ("served by it", _served(run)),
    ]
    facts += [
        (f"gate {gate.name}", f"{'passed' if gate.passed else 'FAILED'}: {gate.explanation}")
        for gate in run.gates
    ]
    if run.error:
        facts.append(("error", run.error))
    print_facts(facts)
    if run.holdout.policies:
        _print_holdout(run.holdout)


def _print_holdout(holdout: evaluation_pb2.HoldoutEvaluation) -> None:
    click.echo()
    print_sentence(
        f"Held out before they were trained: {holdout.interactions} interactions, of them "
        f"{holdout.unknown_propensity} without propensity and {holdout.trained_interactions} that "
        "the active version knew"
    )
    click.echo()
    print_estimates(holdout.policies)
    print_differences(holdout.differences)
