"""Typed client of recparams: decisions by call or in process, reactions with retries."""

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
    DecisionRequest,
    Interaction,
    PersonalityProfile,
    Recommendation,
    RecommendationParams,
    RecordResult,
)

__all__ = [
    "AsyncRecParamsClient",
    "DecisionRequest",
    "Interaction",
    "InteractionReporter",
    "LocalDecision",
    "LocalPolicy",
    "PersonalityProfile",
    "RLTrainingOrchestrator",
    "RecParamsClient",
    "RecParamsError",
    "Recommendation",
    "RecommendationParams",
    "RecordResult",
    "Violation",
    "exit_on_sigterm",
    "get_rl_orchestrator",
    "tls_credentials",
]
