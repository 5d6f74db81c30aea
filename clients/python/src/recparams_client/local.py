"""Decisions in the caller's own process, by the policy that the server serves."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc

from recparams.v1 import policy_pb2_grpc
from recparams.v1 import recommendation_pb2 as pb
from recparams_client import conversion, fallback
from recparams_client.account import Account, ClientStats
from recparams_client.channel import (
    DECISION_TIMEOUT,
    LONG_LIVED,
    Options,
    connect,
    key_metadata,
)
from recparams_client.closing import Closing
from recparams_client.deciding import Decider, LocalDecision
from recparams_client.errors import RecParamsError, Violation
from recparams_client.forks import Connection, require_grpc, restart_after_fork
from recparams_client.snapshot import Snapshot
from recparams_client.sync import RecParamsClient
from recparams_client.types import DecisionRequest, Recommendation, TimeOfDay
from recparams_client.watching import Watcher

LONGEST_USER_ID = 128
MAX_AGE = 24 * 3600.0
_LARGEST_OFFSET = 840
_MOST_SECONDS = 253402300799


class LocalPolicy(Closing):
    """The server's policy in this process, without a call for each decision. Threads may share one.

    It keeps the policy in memory and up to date. While the server is away it goes on with the last
    one; before it has any, or when that is older than `max_age`, the hand-written rules answer,
    and `is_fallback` is True. Personalities come with each request: profiles stored at the server
    are not known here, and without one the rules answer at neutral scores. A version that is no
    table (lin_ucb, dqn and their like) is asked for at the server, as `RecParamsClient` does.
    After os.fork() it goes on in both processes: the child has the policy that was there, and
    follows the server by a thread and a connection of its own from its first use on.

    Args:
        address, credentials, api_key, options, interceptors: as for `RecParamsClient`.
        max_age: seconds without a word from the server after which its policy is not used any more.
        decision_timeout: seconds until the rules answer, if the server has to be asked.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:50051",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: str | None = None,
        max_age: float = MAX_AGE,
        decision_timeout: float = DECISION_TIMEOUT,
        options: Options = (),
        interceptors: Sequence[Any] = (),
    ) -> None:
        self._client = RecParamsClient(
            address,
            decision_timeout=decision_timeout,
            credentials=credentials,
            api_key=api_key,
            options=options,
            interceptors=interceptors,
        )
        self._connection = Connection(
            lambda: connect(grpc, address, credentials, LONG_LIVED, options, interceptors),
            policy_pb2_grpc.PolicyServiceStub,
            is_stream=True,
        )
        self._account = Account(address)
        self._max_age = max_age
        self._decider: Decider | None = None
        self._arrived = threading.Event()
        self._watcher = Watcher(self._connection, key_metadata(api_key), self._take)
        restart_after_fork(self)

    def _take(self, snapshot: Snapshot) -> None:
        self._decider = Decider(snapshot, lambda: self._watcher.key)
        self._arrived.set()

    def after_fork(self) -> None:
        """Begins anew, in the child of a fork."""
        arrived = self._arrived.is_set()
        self._arrived = threading.Event()
        if arrived:
            self._arrived.set()
        self._watcher.after_fork()

    def _follow(self) -> None:
        """Starts the thread in the child of a fork. Raises as `require_grpc`."""
        if not self._watcher.is_running:
            require_grpc()
            self._watcher.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the first policy, up to `timeout` seconds. Returns True if it is there."""
        self._follow()
        return self._arrived.wait(timeout)

    @property
    def age(self) -> float | None:
        """Seconds since the server last said anything; None before it has."""
        heard = self._watcher.heard_at
        return None if heard is None else time.monotonic() - heard

    @property
    def problem(self) -> str:
        """The reason for which the server cannot be followed right now; empty while it is."""
        return self._watcher.problem

    @property
    def stats(self) -> ClientStats:
        """The decisions that the rules of this library made; others are not counted here."""
        return self._account.stats

    @property
    def model_version(self) -> int | None:
        """The version that is active or being rolled out; None before the first policy."""
        decider = self._decider
        return None if decider is None else decider.version

    def get_recommendation_params(self, request: DecisionRequest) -> Recommendation:
        """Returns a decision for one person, with a token to send back with the reaction.

        Raises:
            ValueError: an unknown name, or no time.
            RecParamsError: the server would refuse the request.
        """
        decider = self._usable()
        if decider is None:
            return self._rules(conversion.request_message(request))
        if not decider.is_complete:
            return self._client.get_recommendation_params(request)
        return self._decide(decider, request).with_token()

    def _rules(self, message: pb.GetRecommendationParamsRequest) -> Recommendation:
        """Returns the rules' answer while there is no policy, and warns of it now and then."""
        problem = self.problem or f"nothing was heard of it for {self._max_age:g} s"
        if self._account.fell_back("client_unavailable"):
            self._account.warn(problem)
        return fallback.recommend(message, "client_unavailable", problem)

    def decide(self, request: DecisionRequest) -> LocalDecision:
        """Returns a decision whose token is made when it is first asked for, for hot paths.

        Raises:
            LookupError: there is no policy here that can decide: ask `get_recommendation_params`.
            ValueError, RecParamsError: as `get_recommendation_params`.
        """
        decider = self._usable()
        if decider is None or not decider.is_complete:
            raise LookupError("there is no policy here that can decide")
        return self._decide(decider, request)

    def _usable(self) -> Decider | None:
        watcher = self._watcher
        if not watcher.is_running:
            self._follow()
        heard = watcher.heard_at
        if heard is None or time.monotonic() - heard > self._max_age:
            return None
        return self._decider

    def _decide(self, decider: Decider, request: DecisionRequest) -> LocalDecision:
        user_id, time_of_day = request.user_id, request.time_of_day
        if time_of_day is None:
            time_of_day = _checked_time(decider, request)
        if not _is_name(user_id):
            raise _refused(decider, request)
        try:
            if request.personality is None:
                return decider.decide_without_profile(
                    user_id, request.content_type, request.mood, time_of_day
                )
            return decider.decide(
                user_id, request.personality, request.content_type, request.mood, time_of_day
            )
        except (KeyError, ValueError, OverflowError):
            raise _refused(decider, request) from None

    def close(self) -> None:
        """Stops following the server and closes the connections."""
        self._watcher.stop()
        self._connection.close()
        self._client.close()


def _is_name(user_id: str) -> bool:
    return 0 < len(user_id) <= LONGEST_USER_ID and "\0" not in user_id


def _checked_time(decider: Decider, request: DecisionRequest) -> TimeOfDay:
    message = conversion.request_message(request)
    if any(_time_violations(message)):
        raise _refused(decider, request)
    return fallback.time_of_day(message)


def _refused(decider: Decider, request: DecisionRequest) -> Exception:
    """Returns the server's error for a wrong request. Raises ValueError on unknown names."""
    message = conversion.request_message(request)
    found = list(_violations(decider, message))
    first = f"{found[0].field}: {found[0].description}"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return RecParamsError(grpc.StatusCode.INVALID_ARGUMENT, first + more, tuple(found))


def _violations(
    decider: Decider, message: pb.GetRecommendationParamsRequest
) -> Iterator[Violation]:
    if not _is_name(message.user_id):
        yield Violation("user_id", f"must have 1 to {LONGEST_USER_ID} characters and no NUL")
    if message.HasField("personality"):
        for name in fallback.TRAITS:
            score = getattr(message.personality, name)
            if not 0.0 <= score <= 100.0:
                yield Violation(f"personality.{name}", f"must be from 0 to 100, not {score:g}")
    if not message.time_of_day:
        yield from _time_violations(message)
    known = [context.numbers for context in decider.snapshot.contexts.values()]
    for position, name in enumerate(("content_type", "mood", "time_of_day")):
        value = getattr(message, name)
        if value and all(one[position] != value for one in known):
            yield Violation(name, f"has no value {value} in this deployment")


def _time_violations(message: pb.GetRecommendationParamsRequest) -> Iterator[Violation]:
    if abs(message.utc_offset_minutes) > _LARGEST_OFFSET:
        yield Violation("utc_offset_minutes", f"must be within {_LARGEST_OFFSET} of 0")
    elif not 0 <= message.timestamp.seconds <= _MOST_SECONDS:
        yield Violation("timestamp", "must lie in the years 1970 to 9999")
