"""Which callers an RPC lets in: by admin key alone, or by the roles of known callers."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from typing import Any

import grpc

from recparams.v1 import recommendation_pb2
from server.callers import Caller, Role, key_digest
from server.config import Settings
from server.errors import error, refuse
from server.services.admin import HEADER, AdminKey, Check

API_KEY_HEADER = "x-api-key"
Checks = Callable[[Role], Check]

_ROLES = {
    "GetRecommendationParams": Role.RECOMMEND,
    "BatchGetRecommendationParams": Role.RECOMMEND,
    "RecordInteractions": Role.RECORD,
    "PutPersonalityProfiles": Role.RECORD,
}
"""Of RecommendationService; what is not here needs the role administer."""


class Callers:
    """Tells callers by what they present."""

    def __init__(self, callers: Iterable[Caller]) -> None:
        known = list(callers)
        self._by_key = {caller.key: caller for caller in known if caller.key}
        self._by_name = {caller.common_name: caller for caller in known if caller.common_name}

    def of(self, context: Any) -> Caller:
        """Who makes a call. Raises UNAUTHENTICATED, or PERMISSION_DENIED for a stranger."""
        metadata = dict(context.invocation_metadata() or ())
        key = metadata.get(API_KEY_HEADER) or metadata.get(HEADER)
        if key:
            # Found by its hash: how long that takes says nothing about the key.
            caller = self._by_key.get(key_digest(key))
        else:
            names = context.auth_context().get("x509_common_name")
            if not names:
                raise error(
                    grpc.StatusCode.UNAUTHENTICATED,
                    "NO_CREDENTIALS",
                    f"{API_KEY_HEADER} metadata or a client certificate is required",
                )
            caller = self._by_name.get(next(iter(names)).decode(errors="replace"))
        if caller is None:
            raise error(
                grpc.StatusCode.PERMISSION_DENIED,
                "UNKNOWN_CALLER",
                "no caller has this key" if key else "no caller has this certificate's name",
            )
        return caller


class RoleCheck:
    """Lets callers with a role in where otherwise the admin key is asked for."""

    def __init__(self, callers: Callers, role: Role) -> None:
        self._callers = callers
        self._role = role

    def check(self, context: Any) -> None:
        """Raises UNAUTHENTICATED without credentials, PERMISSION_DENIED without the role."""
        caller = self._callers.of(context)
        if self._role not in caller.roles and Role.ADMINISTER not in caller.roles:
            raise error(
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_MISSING",
                f"caller {caller.name!r} does not have the role {self._role}",
                {"caller": caller.name, "role": self._role},
            )


def checks(settings: Settings) -> Checks:
    """The check that each role asks for."""
    hashes = settings.admin_digests()
    if settings.authorization == "admin_only":
        admin = AdminKey(hashes)
        return lambda _: admin
    administer = frozenset({Role.ADMINISTER})
    administrators = [Caller("admin", administer, key=digest) for digest in hashes]
    return partial(RoleCheck, Callers([*settings.known_callers(), *administrators]))


def guard(service: Any, check: Checks) -> None:
    """Has the handlers of a RecommendationService, all of them unary, look at the caller first."""
    descriptor = recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"]
    for method in descriptor.methods:
        needed = check(_ROLES.get(method.name, Role.ADMINISTER))
        setattr(service, method.name, _guarded(getattr(service, method.name), needed))


def _guarded(
    handler: Callable[[Any, Any], Awaitable[Any]], needed: Check
) -> Callable[[Any, Any], Awaitable[Any]]:
    @wraps(handler)
    async def call(request: Any, context: Any) -> Any:
        try:
            needed.check(context)
        except Exception as failure:
            await refuse(context, failure, handler.__name__)
        return await handler(request, context)

    return call
