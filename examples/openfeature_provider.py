"""An OpenFeature provider of decisions, for programs that ask OpenFeature for everything.

    api.set_provider(RecParamsProvider(policy, reporter))
    client = api.get_client()
    found = client.get_object_details("recommendation", {}, EvaluationContext("ada", ADA))
    search(**found.value)
    reaction = TrackingEventDetails(attributes={"decision": found.flag_metadata["decision"]})
    client.track("like", EvaluationContext("ada"), reaction)

It has one flag, the object "recommendation". Its parameters are no flags of their own: each
evaluation is a decision, and those of two flags would come from two. It needs recparams-client and
openfeature-sdk.
"""

import dataclasses
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    FlagNotFoundError,
    InvalidContextError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata
from openfeature.track import TrackingEventDetails

from recparams_client import (
    DecisionRequest,
    Interaction,
    InteractionReporter,
    LocalPolicy,
    PersonalityProfile,
    RecParamsError,
)

FLAG = "recommendation"
_TRAITS = [field.name for field in dataclasses.fields(PersonalityProfile)]


class RecParamsProvider(AbstractProvider):
    """Decisions of a `LocalPolicy`, and reactions by an `InteractionReporter`.

    The targeting key is the user id; the context's attributes are content_type, mood and
    time_of_day, and the five scores, all of them or none.
    """

    def __init__(self, policy: LocalPolicy, reporter: InteractionReporter) -> None:
        super().__init__()
        self._policy = policy
        self._reporter = reporter

    def get_metadata(self) -> Metadata:
        return Metadata(name="recparams")

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],  # noqa: ARG002
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        """Returns the parameters; metadata has what there is to know of the decision."""
        if flag_key != FLAG:
            raise FlagNotFoundError(f"there is {FLAG!r} alone, not {flag_key!r}")
        try:
            decision = self._policy.get_recommendation_params(_request(evaluation_context))
        except (TypeError, ValueError, RecParamsError) as wrong:
            raise InvalidContextError(str(wrong)) from None
        return FlagResolutionDetails(
            value=decision.params.as_dict(),
            variant=f"{decision.energy} {decision.diversity} {decision.novelty}",
            reason=_reason(decision.source, decision.is_fallback),
            flag_metadata={
                "decision": b64encode(decision.decision_token).decode(),
                "model_version": decision.model_version,
                "propensity": decision.propensity,
                "fallback_reason": decision.fallback_reason,
            },
        )

    def track(
        self,
        tracking_event_name: str,
        evaluation_context: EvaluationContext | None = None,
        tracking_event_details: TrackingEventDetails | None = None,
    ) -> None:
        """Reports a reaction by its name, such as "like", to the decision of the details.

        The value of the details is the completion rate. That of a fallback is left out.
        """
        details = tracking_event_details or TrackingEventDetails()
        decision = details.attributes.get("decision")
        if decision and evaluation_context is not None:
            reaction: Any = (tracking_event_name,)
            token = b64decode(str(decision))
            user_id = evaluation_context.targeting_key or ""
            self._reporter.report(Interaction(user_id, token, reaction, details.value))

    def _mismatch(
        self,
        flag_key: str,
        default_value: Any,  # noqa: ARG002
        evaluation_context: EvaluationContext | None = None,  # noqa: ARG002
    ) -> Any:
        raise TypeMismatchError(f"{flag_key!r} is none, and {FLAG!r} is an object")

    resolve_boolean_details = _mismatch
    resolve_string_details = _mismatch
    resolve_integer_details = _mismatch
    resolve_float_details = _mismatch


def _request(context: EvaluationContext | None) -> DecisionRequest:
    if context is None or not context.targeting_key:
        raise TargetingKeyMissingError("the targeting key is the user id")
    given: dict[str, Any] = dict(context.attributes)
    scores = {name: given.pop(name) for name in _TRAITS if name in given}
    known = {name: given.get(name) for name in ("content_type", "mood", "time_of_day")}
    return DecisionRequest(
        context.targeting_key,
        **{name: value for name, value in known.items() if value is not None},
        personality=PersonalityProfile(**scores) if scores else None,
    )


def _reason(source: str, is_fallback: bool) -> Reason:
    if is_fallback:
        return Reason.DEFAULT
    return Reason.SPLIT if source == "exploration" else Reason.TARGETING_MATCH
