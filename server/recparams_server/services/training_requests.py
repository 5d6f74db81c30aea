"""Checks of the requests to the TrainingService."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message

from recparams.v1 import evaluation_pb2, tuning_pb2
from recparams.v1 import training_pb2 as pb
from recparams_rl.learners.hyperparameters import Hyperparameters
from recparams_rl.learners.registry import LEARNERS, settings_of
from recparams_rl.learners.tabular import TabularLearner
from recparams_rl.objectives import Objectives
from recparams_server.contract.errors import Violations
from recparams_server.jobs.requests import (
    ACTIVE,
    PROCESS,
    RANDOM,
    RAY,
    RULES,
    RunRequest,
    TuningRequest,
)
from recparams_server.services.checks import (
    FUTURE_ALLOWED,
    check_count,
    check_timestamp,
    to_datetime,
)
from recparams_server.settings import Settings

MOST_DAYS = 3650
TUNING_DAYS = 28
MOST_INTERACTIONS = 1_000_000_000
LONGEST_REQUEST_ID = 64
LONGEST_FOLDER = 1000
LONGEST_NAME = 64
MOST_PARAMETERS = 64
MOST_POLICIES = 16
_BUILTIN = {
    evaluation_pb2.BUILTIN_POLICY_ACTIVE: ACTIVE,
    evaluation_pb2.BUILTIN_POLICY_RULE_BASED: RULES,
    evaluation_pb2.BUILTIN_POLICY_UNIFORM_RANDOM: RANDOM,
}
_ENGINES = {pb.TRAINING_ENGINE_PROCESS: PROCESS, pb.TRAINING_ENGINE_RAY: RAY}


def run_request(settings: Settings, request: pb.TriggerTrainingRequest) -> RunRequest:
    """Returns the checked request of a run. Raises INVALID_ARGUMENT with everything wrong."""
    violations = Violations()
    if len(request.request_id) > LONGEST_REQUEST_ID or "\x00" in request.request_id:
        violations.add("request_id", f"must have up to {LONGEST_REQUEST_ID} characters")
    days_back = bounded(request, "days_back", None, MOST_DAYS, violations)
    minimum = bounded(
        request,
        "min_interactions_per_user",
        settings.min_interactions_per_user,
        MOST_INTERACTIONS,
        violations,
    )
    if request.mode not in pb.TrainingMode.values():
        violations.add("mode", f"there is no mode {request.mode}")
    algorithm = request.algorithm or settings.algorithm
    hyperparameters = _hyperparameters(settings, algorithm, request.hyperparameters, violations)
    if algorithm != settings.algorithm and request.mode != pb.TRAINING_MODE_REBUILD:
        violations.add(
            "algorithm",
            "needs mode TRAINING_MODE_REBUILD to be another than the "
            f"configured {settings.algorithm}",
        )
    objectives = _objectives(settings, request, violations)
    as_of = as_of_or_now(request, violations)
    engine = _engine(settings, request, algorithm, violations)
    folder = request.export_folder
    if folder and engine != RAY:
        violations.add("export_folder", "is for engine TRAINING_ENGINE_RAY")
    if len(folder) > LONGEST_FOLDER or not folder.isprintable():
        violations.add("export_folder", f"must have up to {LONGEST_FOLDER} printable characters")
    violations.raise_any()
    return RunRequest(
        rebuild=request.mode == pb.TRAINING_MODE_REBUILD,
        days_back=days_back,
        min_interactions_per_user=minimum or 1,
        hyperparameters=hyperparameters,
        as_of=as_of,
        activate=request.activate if request.HasField("activate") else True,
        objectives=objectives,
        apart=request.HasField("objectives") or algorithm != settings.algorithm,
        algorithm=algorithm,
        engine=engine,
        export_folder=folder,
    )


def _hyperparameters(
    settings: Settings, algorithm: str, message: pb.Hyperparameters, violations: Violations
) -> Hyperparameters:
    configured = settings.hyperparameters()
    given = message.algorithm_parameters
    path = "hyperparameters.algorithm_parameters"
    if not check_count(len(given), MOST_PARAMETERS, path, violations):
        return configured
    for name, text in (
        ("algorithm", algorithm),
        ("hyperparameters.exploration_schedule", message.exploration_schedule),
        *((f"{path}.{parameter[:LONGEST_NAME]}", parameter) for parameter in given),
    ):
        if len(text) > LONGEST_NAME:
            violations.add(name, f"must have up to {LONGEST_NAME} characters")
            return configured
    values = (
        configured.to_dict()
        if algorithm == settings.algorithm
        else settings.common_hyperparameters()
    )
    for field, value in message.ListFields():
        values |= value if field.name == "algorithm_parameters" else {field.name: value}
    try:
        return settings_of(algorithm, values)
    except ValueError as failure:
        name, _, description = str(failure).partition(" ")
        inside = name in message.algorithm_parameters
        path = "hyperparameters.algorithm_parameters." if inside else "hyperparameters."
        violations.add("algorithm" if name == "algorithm" else path + name, description)
        return configured


def _objectives(
    settings: Settings, request: pb.TriggerTrainingRequest, violations: Violations
) -> Objectives:
    configured = settings.objectives()
    if not request.HasField("objectives"):
        return configured
    if request.mode != pb.TRAINING_MODE_REBUILD:
        violations.add("objectives", "need mode TRAINING_MODE_REBUILD")
    return _overridden(configured, request.objectives, "objectives", violations)


def _engine(
    settings: Settings, request: pb.TriggerTrainingRequest, algorithm: str, violations: Violations
) -> str:
    if request.engine not in pb.TrainingEngine.values():
        violations.add("engine", f"there is no engine {request.engine}")
    wanted = _ENGINES.get(request.engine, settings.training_engine)
    if (
        wanted == RAY
        and algorithm in LEARNERS
        and not issubclass(LEARNERS[algorithm], TabularLearner)
    ):
        violations.add("engine", f"Ray deals out tables, which {algorithm} does not learn")
    return wanted


def _overridden(
    configured: Objectives, message: Message, path: str, violations: Violations
) -> Objectives:
    """Returns weights with what a message sets; notes a value that they refuse."""
    try:
        return replace(configured, **{field.name: value for field, value in message.ListFields()})
    except ValueError as failure:
        name, _, description = str(failure).partition(" ")
        violations.add(f"{path}.{name}", description)
        return configured


def policies_of(
    messages: Sequence[evaluation_pb2.Policy], violations: Violations
) -> tuple[int | str, ...]:
    """Returns the policies to evaluate; notes those that are invalid."""
    if not check_count(len(messages), MOST_POLICIES, "policies", violations):
        return ()
    wanted: list[int | str] = []
    for position, message in enumerate(messages):
        builtin = _BUILTIN.get(message.builtin)
        if message.version > 0:
            wanted.append(message.version)
        elif builtin is not None:
            wanted.append(builtin)
        else:
            violations.add(f"policies[{position}]", "needs a version from 1, or a builtin")
    return tuple(wanted) or (ACTIVE, RULES, RANDOM)


def bounded(
    request: Any, name: str, default: int | None, most: int, violations: Violations
) -> int | None:
    """Returns an optional whole number, and notes it unless it is from 1 to `most`."""
    if not request.HasField(name):
        return default
    value = int(getattr(request, name))
    if not 1 <= value <= most:
        violations.add(name, f"must be from 1 to {most}, not {value}")
    return value


def tuning_request(request: tuning_pb2.TuneRequest) -> TuningRequest:
    """Returns the checked request of a tuning. Raises INVALID_ARGUMENT with everything wrong."""
    violations = Violations()
    days = bounded(request, "days_back", TUNING_DAYS, MOST_DAYS, violations)
    end = as_of_or_now(request, violations)
    confidence = confidence_of(request, violations)
    violations.raise_any()
    return TuningRequest(end - timedelta(days=days or TUNING_DAYS), end, confidence)


def confidence_of(request: Any, violations: Violations) -> float:
    """Returns the confidence of a request, by default 0.95; notes one that is out of range."""
    confidence: float = request.confidence if request.HasField("confidence") else 0.95
    if not 0.5 <= confidence <= 0.999:
        violations.add("confidence", f"must be from 0.5 to 0.999, not {confidence:g}")
    return confidence


def as_of_or_now(request: Any, violations: Violations) -> datetime:
    """Returns the as_of of a request, by default now; notes one that is invalid."""
    now = datetime.now(UTC)
    if not request.HasField("as_of") or not check_timestamp(request.as_of, "as_of", violations):
        return now
    moment = to_datetime(request.as_of)
    if moment > now + FUTURE_ALLOWED:
        violations.add("as_of", "lies in the future")
    return moment
