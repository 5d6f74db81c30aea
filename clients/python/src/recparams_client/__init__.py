"""Typed client of recparams: decisions with deadlines and a fallback, reactions with retries."""

from recparams_client.aio import AsyncRecParamsClient
from recparams_client.channel import tls_credentials
from recparams_client.errors import RecParamsError, Violation
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
    "PersonalityProfile",
    "RecParamsClient",
    "RecParamsError",
    "Recommendation",
    "RecommendationParams",
    "RecordResult",
    "Violation",
    "tls_credentials",
]
