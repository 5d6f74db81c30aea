"""A server that decides what a test says, and remembers what it was told."""

import secrets
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, NoReturn

import grpc

from recparams.v1 import policy_pb2, policy_pb2_grpc, recommendation_pb2_grpc
from recparams.v1 import recommendation_pb2 as pb
from recparams.v1 import types_pb2 as types
from recparams_client import fallback
from recparams_client.closing import Closing
from recparams_client.conversion import CONTENT_TYPES, MOODS, REACTIONS, TIMES_OF_DAY
from recparams_client.errors import DETAILS_KEY, MESSAGES
from recparams_client.sealing import SealingKey
from recparams_client.testing.decisions import Policy, Table, is_sealed, response, watched
from recparams_client.testing.reach import Reachable
from recparams_client.types import DecisionRequest, Interaction, PersonalityProfile, Recommendation

_THREADS = 32
"""Most calls at a time. Each LocalPolicy takes one for good."""
_HEARTBEAT = 1.0
_AWAY = {
    "client_unavailable": grpc.StatusCode.UNAVAILABLE,
    "client_deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
}

AwayReason = Literal["client_unavailable", "client_deadline"]


class FakeServer(Reachable, Closing):
    """A gRPC server on a free port of this machine, for the library's real clients.

    It decides what `will_decide` was given, then by the table of `serve`, and by the hand-written
    rules otherwise. What a server refuses it refuses too: tokens that it has not given to that
    person, scores out of range, ids of a wrong length. It learns nothing.

    Attributes:
        address: host:port.
        requests: the decisions it was asked for, in order.
        interactions: what was recorded, in order, each once.
        profiles: by user id.
    """

    def __init__(self) -> None:
        self.requests: list[DecisionRequest] = []
        self.interactions: list[Interaction] = []
        self.profiles: dict[str, PersonalityProfile] = {}
        self._scripted: deque[Recommendation] = deque()
        self._given: set[tuple[bytes, str]] = set()
        self._recorded: set[str] = set()
        self._away: AwayReason | None = None
        self._key = SealingKey(secrets.token_bytes(16), secrets.token_bytes(32), time.time() + 1e6)
        self._changed = threading.Condition()
        self._closed = False
        self._activation = 0
        self._policy, self._snapshot = Policy({}, 0), Policy({}, 0).snapshot(0)
        self._server = grpc.server(ThreadPoolExecutor(_THREADS))
        service: Any = _Service(self)
        recommendation_pb2_grpc.add_RecommendationServiceServicer_to_server(service, self._server)
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(service, self._server)
        super().__init__(f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}")
        self._server.start()

    def will_decide(self, *recommendations: Recommendation) -> None:
        """Has the next decisions by call be these, as of `recommendation`, one after the other."""
        self._scripted.extend(recommendations)

    def serve(self, table: Table, version: int = 1) -> None:
        """Serves a table from now on, by call and to every `LocalPolicy`.

        Args:
            table: context to action, by names; the rules decide where it says nothing.
            version: its number, 1 or more.

        Raises:
            ValueError: an unknown name.
        """
        policy = Policy(dict(table), version)
        snapshot = policy.snapshot(self._activation + 1)
        with self._changed:
            self._activation += 1
            self._policy, self._snapshot = policy, snapshot
            self._changed.notify_all()

    @contextmanager
    def away(self, reason: AwayReason = "client_unavailable") -> Iterator[None]:
        """Has all calls fail within a with statement, so that the client's rules decide.

        A `LocalPolicy` goes on with what it has, as it does without a server.

        Args:
            reason: the `fallback_reason` of decisions; `record_interactions` raises.
        """
        self._away = reason
        try:
            yield
        finally:
            self._away = None

    def close(self) -> None:
        """Ends the server."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.stop(0).wait()

    def check_away(self, context: Any) -> None:
        """Ends a call while the server is away."""
        if self._away is not None:
            # Without a retry of gRPC's, which would take its time.
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"),))
            context.abort(_AWAY[self._away], "the test says that the server is away")

    def decide(
        self, request: pb.GetRecommendationParamsRequest, field: str, context: Any
    ) -> pb.GetRecommendationParamsResponse:
        """Answers one request."""
        _check_user(request.user_id, field, context)
        profile = self.profiles.get(request.user_id)
        if request.HasField("personality"):
            profile = _profile(request.personality, f"{field}personality", context)
        self.requests.append(_decision_request(request))
        if self._scripted:
            decision = self._scripted.popleft()
        else:
            names = (
                CONTENT_TYPES[request.content_type],
                MOODS[request.mood or types.MOOD_NEUTRAL],
                fallback.time_of_day(request),
            )
            decision = self._policy.decide(names, vars(profile) if profile else None)
        token = decision.decision_token or b"fake-" + secrets.token_bytes(12)
        self._given.add((token, request.user_id))
        return response(decision, token)

    def record(self, interactions: list[pb.Interaction], context: Any) -> tuple[int, int]:
        """Keeps all interactions or none. Returns the numbers of new and of known ones."""
        for place, one in enumerate(interactions):
            _check_user(one.user_id, f"interactions[{place}].", context)
            if (one.decision_token, one.user_id) not in self._given and not is_sealed(
                one.decision_token, self._key, one.user_id.encode()
            ):
                field = f"interactions[{place}].decision_token"
                _refuse(context, field, "is not one that this server gave to this person")
        new = [one for one in interactions if one.interaction_id not in self._recorded]
        self._recorded.update(one.interaction_id for one in new)
        self.interactions.extend(map(_interaction, new))
        return len(new), len(interactions) - len(new)

    def watch(self, known: bytes, context: Any) -> Iterator[policy_pb2.WatchPolicyResponse]:
        """Sends the policy, every change of it, and heartbeats."""
        while not self._closed and context.is_active():
            snapshot = self._snapshot
            message = watched(snapshot, known, self._key)
            message.heartbeat_seconds = _HEARTBEAT
            yield message
            known = message.checksum
            with self._changed:
                if self._snapshot is snapshot and not self._closed:
                    self._changed.wait(_HEARTBEAT)


class _Service(
    recommendation_pb2_grpc.RecommendationServiceServicer, policy_pb2_grpc.PolicyServiceServicer
):
    """The calls of a fake, one at a time where they change it."""

    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self._lock = threading.Lock()

    def GetRecommendationParams(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._server.check_away(context)
        with self._lock:
            return self._server.decide(request, "", context)

    def BatchGetRecommendationParams(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._server.check_away(context)
        with self._lock:
            answers = [
                self._server.decide(one, f"requests[{place}].", context)
                for place, one in enumerate(request.requests)
            ]
        return pb.BatchGetRecommendationParamsResponse(responses=answers)

    def RecordInteractions(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._server.check_away(context)
        with self._lock:
            new, known = self._server.record(list(request.interactions), context)
        return pb.RecordInteractionsResponse(recorded=new, duplicates=known)

    def PutPersonalityProfiles(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._server.check_away(context)
        found = {}
        for place, one in enumerate(request.profiles):
            field = f"profiles[{place}]."
            _check_user(one.user_id, field, context)
            found[one.user_id] = _profile(one.personality, f"{field}personality", context)
        with self._lock:
            self._server.profiles.update(found)
        return pb.PutPersonalityProfilesResponse(stored=len(request.profiles))

    def WatchPolicy(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._server.check_away(context)
        yield from self._server.watch(request.known_checksum, context)


def _refuse(context: Any, field: str, description: str) -> NoReturn:
    """Ends a call as the server does at a field that is wrong."""
    bad = MESSAGES["BadRequest"]()
    bad.field_violations.add(field=field, description=description)
    message = f"{field}: {description}"
    status = MESSAGES["Status"](code=3, message=message)
    status.details.add(
        type_url="type.googleapis.com/google.rpc.BadRequest", value=bad.SerializeToString()
    )
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)
    raise AssertionError


def _check_user(user_id: str, field: str, context: Any) -> None:
    if not 1 <= len(user_id) <= 128:
        _refuse(context, f"{field}user_id", f"must have 1 to 128 characters, not {len(user_id)}")


def _profile(message: Any, field: str, context: Any) -> PersonalityProfile:
    scores = {name: getattr(message, name) for name in fallback.TRAITS}
    for name, score in scores.items():
        if not (message.HasField(name) and 0.0 <= score <= 100.0):
            _refuse(context, f"{field}.{name}", f"must be from 0 to 100, not {score:g}")
    return PersonalityProfile(**scores)


def _decision_request(message: pb.GetRecommendationParamsRequest) -> DecisionRequest:
    moment = None
    if message.HasField("timestamp"):
        zone = timezone(timedelta(minutes=message.utc_offset_minutes))
        moment = message.timestamp.ToDatetime(UTC).astimezone(zone)
    given = message.personality
    return DecisionRequest(
        message.user_id,
        content_type=CONTENT_TYPES[message.content_type],
        mood=MOODS[message.mood],
        time_of_day=TIMES_OF_DAY[message.time_of_day] or None,
        timestamp=moment,
        personality=PersonalityProfile(**{name: getattr(given, name) for name in fallback.TRAITS})
        if message.HasField("personality")
        else None,
    )


def _interaction(message: pb.Interaction) -> Interaction:
    moment: datetime | None = None
    if message.HasField("occurred_at"):
        moment = message.occurred_at.ToDatetime(UTC)
    return Interaction(
        message.user_id,
        message.decision_token,
        tuple(REACTIONS[one] for one in message.reactions),
        message.completion_rate if message.HasField("completion_rate") else None,
        message.mood_change if message.HasField("mood_change") else None,
        moment,
        message.interaction_id,
    )
