"""Typed client of recparams: decisions by call or in process, reactions with retries."""

from importlib.metadata import version

from recparams_client.account import ClientStats
from recparams_client.admin import AdminClient
from recparams_client.admin_aio import AsyncAdminClient
from recparams_client.admin_requests import (
    EvaluateOptions,
    RolloutOptions,
    TriggerOptions,
    run_outcome,
    run_status,
)
from recparams_client.aio import AsyncRecParamsClient
from recparams_client.channel import tls_credentials
from recparams_client.deciding import LocalDecision
from recparams_client.errors import RecParamsError, Violation
from recparams_client.exiting import exit_on_sigterm
from recparams_client.local import LocalPolicy
from recparams_client.orchestrator import RLTrainingOrchestrator, get_rl_orchestrator
from recparams_client.reporter import InteractionReporter
from recparams_client.sync import RecParamsClient
from recparams_client.types import (
    ContentType,
    DecisionRequest,
    Diversity,
    Energy,
    Interaction,
    Mood,
    Novelty,
    PersonalityProfile,
    PolicyArm,
    Reaction,
    Recommendation,
    RecommendationParams,
    RecordResult,
    Source,
    TimeOfDay,
)

__all__ = [
    "AdminClient",
    "AsyncAdminClient",
    "AsyncRecParamsClient",
    "ClientStats",
    "ContentType",
    "DecisionRequest",
    "Diversity",
    "Energy",
    "EvaluateOptions",
    "Interaction",
    "InteractionReporter",
    "LocalDecision",
    "LocalPolicy",
    "Mood",
    "Novelty",
    "PersonalityProfile",
    "PolicyArm",
    "RLTrainingOrchestrator",
    "Reaction",
    "RecParamsClient",
    "RecParamsError",
    "Recommendation",
    "RecommendationParams",
    "RecordResult",
    "RolloutOptions",
    "Source",
    "TimeOfDay",
    "TriggerOptions",
    "Violation",
    "__version__",
    "exit_on_sigterm",
    "get_rl_orchestrator",
    "run_outcome",
    "run_status",
    "tls_credentials",
]

__version__: str


def __getattr__(name: str) -> str:
    if name == "__version__":
        return version("recparams-client")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
