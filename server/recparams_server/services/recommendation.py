"""RecommendationService: answers decisions, records reactions, stores profiles."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import recommendation_pb2_grpc as grpc_pb
from recparams_server.contract.errors import Violations, invalid
from recparams_server.contract.interaction import NewInteractions
from recparams_server.contract.sizes import MOST_RECORDS, MOST_REQUESTS
from recparams_server.contract.vocabulary import Traits
from recparams_server.observability import metrics
from recparams_server.rpc.decoding import PIECE_BYTES, decoded
from recparams_server.rpc.methods import METHODS
from recparams_server.services.checks import LONGEST_USER_ID, check_name, check_personality
from recparams_server.services.interaction_requests import InteractionRules, parse_interactions
from recparams_server.services.recommendation_requests import parse_request
from recparams_server.services.runtime import Runtime
from recparams_server.services.served_plans import ServedPlans
from recparams_server.serving.answers import batch_answer
from recparams_server.serving.decider import Decider
from recparams_server.serving.delegated_decisions import DelegatedDecision
from recparams_server.serving.plain_requests import read_plain_batch
from recparams_server.settings import Settings
from recparams_server.store import interactions, profiles
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.profiles import ProfileCache
from recparams_server.turns import in_turns, turn

PROFILE_PAUSE = 1.0
_TOGETHER = 100
"""Interactions that are checked between two looks at the clock."""
_ONE, _BATCH = METHODS["GetRecommendationParams"], METHODS["BatchGetRecommendationParams"]


class RecommendationService(grpc_pb.RecommendationServiceServicer):
    """Answers decisions from memory; writes reactions and profiles to the database.

    Args:
        settings: the server's settings.
        runtime: the shared parts.
        cache: profiles in memory.
    """

    def __init__(self, settings: Settings, runtime: Runtime, cache: ProfileCache) -> None:
        self._settings = settings
        self._runtime = runtime
        self._cache = cache
        self._served = ServedPlans(runtime.holder, settings.served_exploration())
        self._weights = settings.reward_weights()
        self._no_profiles_until = 0.0

    def GetRecommendationParams(  # type: ignore[override]
        self, message: bytes, context: Any
    ) -> bytes | Awaitable[bytes]:
        decider = self._runtime.require_decider()
        return decider.answer(message) or self._decide(decider, message)

    async def _decide(self, decider: Decider, message: bytes) -> bytes:
        request = decoded(pb.GetRecommendationParamsRequest, message, _ONE)
        violations = Violations()
        traits, numbers = parse_request(request, decider.contexts, "", violations)
        violations.raise_any()
        user = request.user_id.encode()
        if traits is None:
            stored, reason = await self._stored_profiles([request.user_id])
            traits = stored.get(request.user_id)
        if traits is None:
            return decider.decide_without_profile(user, reason, numbers)
        return decider.decide(user, traits, numbers)

    async def BatchGetRecommendationParams(  # type: ignore[override]
        self, message: bytes, context: Any
    ) -> bytes:
        decider = self._runtime.require_decider()
        plain = read_plain_batch(message) if len(message) <= PIECE_BYTES else None
        if plain and 1 <= len(plain[0]) <= MOST_REQUESTS:
            with contextlib.suppress(KeyError, ValueError):
                return batch_answer(decider.decide_all(*plain))
        request = decoded(pb.BatchGetRecommendationParamsRequest, message, _BATCH)
        _check_count("requests", len(request.requests), MOST_REQUESTS)
        violations = Violations()
        parsed = [
            (one.user_id, *parse_request(one, decider.contexts, f"requests[{i}].", violations))
            for i, one in enumerate(request.requests)
        ]
        violations.raise_any()
        unknown = {user_id for user_id, traits, _ in parsed if traits is None}
        stored, reason = await self._stored_profiles(unknown)
        answers = []
        for user_id, traits, numbers in parsed:
            traits = traits or stored.get(user_id)
            if traits is None:
                answers.append(decider.decide_without_profile(user_id.encode(), reason, numbers))
            else:
                answers.append(decider.decide(user_id.encode(), traits, numbers))
        return batch_answer(answers)

    async def RecordInteractions(
        self, request: pb.RecordInteractionsRequest, context: Any
    ) -> pb.RecordInteractionsResponse:
        decider = self._runtime.require_decider()
        _check_count("interactions", len(request.interactions), MOST_RECORDS)
        rules = InteractionRules(
            tokens=self._runtime.require_tokens(),
            contexts=decider.contexts,
            now=datetime.now(UTC),
            retention=self._settings.retention,
            token_max_age=timedelta(days=self._settings.token_max_age_days),
        )
        violations = Violations()
        delegated: list[DelegatedDecision] = []
        given = request.interactions
        parts = [
            parse_interactions(given[i : i + _TOGETHER], i, rules, violations, delegated)
            async for i in in_turns(range(0, len(given), _TOGETHER))
        ]
        if delegated:
            pool = self._runtime.require_pool()
            await self._served.check(pool, delegated, rules.contexts, violations)
        violations.raise_any()
        new = await interactions.record(
            self._runtime.require_pool(), NewInteractions.joined(parts).distinct()
        )
        await turn()
        metrics.count_interactions(self._weights, new.fields)
        return pb.RecordInteractionsResponse(recorded=len(new), duplicates=len(given) - len(new))

    async def PutPersonalityProfiles(
        self, request: pb.PutPersonalityProfilesRequest, context: Any
    ) -> pb.PutPersonalityProfilesResponse:
        _check_count("profiles", len(request.profiles), MOST_RECORDS)
        violations = Violations()
        new: dict[str, Traits] = {}
        async for i, one in in_turns(enumerate(request.profiles)):
            path = f"profiles[{i}]"
            check_name(one.user_id, LONGEST_USER_ID, f"{path}.user_id", violations)
            if one.user_id in new:
                violations.add(f"{path}.user_id", "appears twice in this request")
            if not one.HasField("personality"):
                violations.add(f"{path}.personality", "is required")
            new[one.user_id] = check_personality(one.personality, f"{path}.personality", violations)
        violations.raise_any()
        await profiles.put(self._runtime.require_pool(), new)
        for user_id in new:
            self._cache.forget(user_id)
        return pb.PutPersonalityProfilesResponse(stored=len(new))

    async def _stored_profiles(
        self, user_ids: Iterable[str]
    ) -> tuple[dict[str, Traits], pb.FallbackReason.ValueType]:
        """Returns the profiles of these people, and the fallback reason of those without one.

        While the database cannot be asked, profiles in memory are used even if out of date.
        """
        found: dict[str, Traits] = {}
        missing = []
        for user_id in user_ids:
            up_to_date, traits = self._cache.get(user_id)
            if traits is not None:
                found[user_id] = traits
            if not up_to_date:
                missing.append(user_id)
        if not missing:
            return found, pb.FALLBACK_REASON_NO_PROFILE
        pool = self._runtime.pool
        if pool is None or time.monotonic() < self._no_profiles_until:
            return found, pb.FALLBACK_REASON_PROFILE_UNAVAILABLE
        changes = self._cache.changes
        try:
            fetched = await profiles.fetch(pool, missing, self._settings.profile_wait_seconds)
        except STORE_ERRORS:
            self._no_profiles_until = time.monotonic() + PROFILE_PAUSE
            return found, pb.FALLBACK_REASON_PROFILE_UNAVAILABLE
        if changes == self._cache.changes:
            for user_id in missing:
                self._cache.put(user_id, fetched.get(user_id))
        for user_id in missing:
            found.pop(user_id, None)
        return found | fetched, pb.FALLBACK_REASON_NO_PROFILE


def _check_count(name: str, count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise invalid(name, f"must have 1 to {most} entries, not {count}")
