"""What both admin clients ask for, and how they read a run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar
from uuid import uuid4

import grpc

from recparams.v1 import evaluation_pb2 as epb
from recparams.v1 import models_pb2 as mpb
from recparams.v1 import (
    models_pb2_grpc,
    rollout_pb2_grpc,
    system_pb2_grpc,
    training_pb2_grpc,
)
from recparams.v1 import rollout_pb2 as rpb
from recparams.v1 import system_pb2 as spb
from recparams.v1 import training_pb2 as tpb
from recparams_client.channel import ADMIN_KEY_HEADER
from recparams_client.conversion import enum_names, number, stamp
from recparams_client.errors import from_rpc_error
from recparams_client.tracing import Metadata

PATIENCE = 60.0
"""Seconds for which a run is followed while no server answers."""
PAUSE = 0.5
ADMIN_TIMEOUT = 30.0
_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

Answer = TypeVar("Answer")

RunStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
RunOutcome = Literal[
    "", "activated", "started", "waiting", "superseded", "refused", "stored", "no_change"
]
EvaluatedPolicy = int | Literal["active", "rule_based", "uniform_random"]
"""A version, or a policy that needs no number."""

_STATUSES = enum_names(tpb.TrainingRunStatus, "TRAINING_RUN_STATUS_")
_OUTCOMES = enum_names(tpb.TrainingOutcome, "TRAINING_OUTCOME_")
_MODES = enum_names(tpb.TrainingMode, "TRAINING_MODE_")
_ENGINES = enum_names(tpb.TrainingEngine, "TRAINING_ENGINE_")
_BUILTIN = enum_names(epb.BuiltinPolicy, "BUILTIN_POLICY_")


class TriggerOptions(TypedDict, total=False):
    """How to train. What is left out is as the server has it.

    Attributes:
        request_id: up to 64 characters; a repeated one returns the run that it started at first.
            Left out, it is a new one.
        days_back: leaves out what happened longer ago; all that is due otherwise, and 7 days of a
            rebuild.
        min_interactions_per_user: people with fewer wait for a later run.
        mode: "incremental" learns what no run has, "rebuild" begins with an empty table.
        engine: what does the work.
        algorithm: as in "double_q_learning"; another than the configured one needs a rebuild.
        hyperparameters: overrides of the learner's settings by name, as in {"learning_rate": 0.2}.
        as_of: the end of the window: an aware datetime; now otherwise.
        activate: False stores the version without serving it.
    """

    request_id: str
    days_back: int | None
    min_interactions_per_user: int | None
    mode: Literal["incremental", "rebuild"]
    engine: Literal["process", "ray"]
    algorithm: str
    hyperparameters: Mapping[str, Any]
    as_of: datetime
    activate: bool


class EvaluateOptions(TypedDict, total=False):
    """What to evaluate.

    Attributes:
        test_days: length of the period, 3 otherwise.
        as_of: its end, an aware datetime; now otherwise.
        policies: versions by number, "active", "rule_based" and "uniform_random"; these three
            otherwise.
        include_trained: keeps interactions that a version was trained on, which flatter it.
        confidence: of the intervals, 0.95 otherwise.
        overall_only: leaves out the estimates by context and trait.
    """

    test_days: int
    as_of: datetime
    policies: Sequence[EvaluatedPolicy]
    include_trained: bool
    confidence: float
    overall_only: bool


class RolloutOptions(TypedDict, total=False):
    """Where a rollout is to go. What is left out stays as it is.

    Attributes:
        version: to roll out.
        percent: its share of the people, 0 to 100.
        step: instead of percent: a configured step, or "next".
        rule_based_percent: share of the people to keep on the rules, 0 to 100.
        reason: for the record, up to 500 characters.
    """

    version: int
    percent: float
    step: str
    rule_based_percent: float
    reason: str


class AdminStub:
    """The stubs of all services that administer, on one channel."""

    def __init__(self, channel: Any) -> None:
        self.training: Any = training_pb2_grpc.TrainingServiceStub(channel)
        self.models: Any = models_pb2_grpc.ModelServiceStub(channel)
        self.rollout: Any = rollout_pb2_grpc.RolloutServiceStub(channel)
        self.system: Any = system_pb2_grpc.SystemServiceStub(channel)


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A call to make.

    Attributes:
        method: gives it on a stub.
        request: its message.
        read: gives the answer in the response.
        is_long: True if it may take longer than other calls.
    """

    method: Callable[[AdminStub], Any]
    request: Any
    read: Callable[[Any], Answer]
    is_long: bool = False


def admin_metadata(admin_key: str | None) -> Metadata:
    """Returns the metadata of calls with an admin key."""
    return None if admin_key is None else ((ADMIN_KEY_HEADER, admin_key),)


def require_passing(raised: Any, lost_at: float) -> None:
    """Raises RecParamsError unless a run may be followed again that was lost at a monotonic time.

    A server that restarts is away for a while.
    """
    if raised.code() not in _PASSING or time.monotonic() - lost_at > PATIENCE:
        raise from_rpc_error(raised) from None


def trigger(options: TriggerOptions) -> Call[tpb.TrainingRun]:
    """Returns the call that starts a run. Raises ValueError on an unknown name."""
    given: dict[str, Any] = {"request_id": uuid4().hex, **options}
    if "mode" in given:
        given["mode"] = number(_MODES, "mode", given["mode"])
    if "engine" in given:
        given["engine"] = number(_ENGINES, "engine", given["engine"])
    if "hyperparameters" in given:
        given["hyperparameters"] = tpb.Hyperparameters(**given["hyperparameters"])
    request = tpb.TriggerTrainingRequest(**_stamped(given))
    return Call(lambda stub: stub.training.TriggerTraining, request, _run)


def cancel(run_id: int) -> Call[tpb.TrainingRun]:
    """Returns the call that asks a run to stop."""
    request = tpb.CancelTrainingRunRequest(run_id=run_id)
    return Call(lambda stub: stub.training.CancelTrainingRun, request, _run)


def run(run_id: int) -> Call[tpb.TrainingRun]:
    """Returns the call for one run."""
    request = tpb.GetTrainingRunRequest(run_id=run_id)
    return Call(lambda stub: stub.training.GetTrainingRun, request, _run)


def runs(limit: int) -> Call[list[tpb.TrainingRun]]:
    """Returns the call for the newest runs."""
    request = tpb.ListTrainingRunsRequest(page_size=limit)
    return Call(lambda stub: stub.training.ListTrainingRuns, request, lambda one: list(one.runs))


def evaluate(options: EvaluateOptions) -> Call[tpb.EvaluateResponse]:
    """Returns the call that evaluates. Raises ValueError on an unknown name."""
    given: dict[str, Any] = {**options}
    given["policies"] = [
        epb.Policy(version=one)
        if isinstance(one, int)
        else epb.Policy(builtin=number(_BUILTIN, "a policy", one))
        for one in given.get("policies", ())
    ]
    request = tpb.EvaluateRequest(**_stamped(given))
    return Call(lambda stub: stub.training.Evaluate, request, _whole, is_long=True)


def versions(limit: int) -> Call[list[mpb.Model]]:
    """Returns the call for the newest versions."""
    request = mpb.ListModelsRequest(page_size=limit)
    return Call(lambda stub: stub.models.ListModels, request, lambda one: list(one.models))


def version(number: int) -> Call[mpb.Model]:
    """Returns the call for one version."""
    request = mpb.GetModelRequest(version=number)
    return Call(lambda stub: stub.models.GetModel, request, lambda one: one.model)


def activate(number: int, reason: str) -> Call[int]:
    """Returns the call that serves a version to everybody."""
    request = mpb.ActivateModelRequest(version=number, reason=reason)
    return Call(lambda stub: stub.models.ActivateModel, request, _previous)


def rollback(reason: str) -> Call[int]:
    """Returns the call that serves what was served before."""
    request = mpb.RollbackModelRequest(reason=reason)
    return Call(
        lambda stub: stub.models.RollbackModel, request, lambda one: int(one.active_version)
    )


def rollout() -> Call[rpb.Rollout]:
    """Returns the call for who is served what."""
    return Call(lambda stub: stub.rollout.GetRollout, rpb.GetRolloutRequest(), _rollout)


def set_rollout(options: RolloutOptions) -> Call[rpb.Rollout]:
    """Returns the call that moves a rollout."""
    return Call(lambda stub: stub.rollout.SetRollout, rpb.SetRolloutRequest(**options), _rollout)


def experiment(experiment_id: int) -> Call[rpb.GetExperimentResponse]:
    """Returns the call for how arms compare."""
    request = rpb.GetExperimentRequest(experiment_id=experiment_id)
    return Call(lambda stub: stub.rollout.GetExperiment, request, _whole)


def health() -> Call[spb.GetSystemHealthResponse]:
    """Returns the call for how the service does."""
    return Call(lambda stub: stub.system.GetSystemHealth, spb.GetSystemHealthRequest(), _whole)


def _run(response: Any) -> tpb.TrainingRun:
    found: tpb.TrainingRun = response.run
    return found


def _rollout(response: Any) -> rpb.Rollout:
    found: rpb.Rollout = response.rollout
    return found


def _previous(response: Any) -> int:
    return int(response.previous_version)


def _whole(response: Any) -> Any:
    return response


def _stamped(given: dict[str, Any]) -> dict[str, Any]:
    moment = stamp(given["as_of"], "as_of") if "as_of" in given else None
    return {**given, "as_of": moment}


def run_status(run: tpb.TrainingRun) -> RunStatus:
    """Returns where a run stands."""
    name: RunStatus = _STATUSES[run.status]
    return name


def run_outcome(run: tpb.TrainingRun) -> RunOutcome:
    """Returns what became of a run's version; empty until the run has completed."""
    name: RunOutcome = _OUTCOMES[run.outcome]
    return name
