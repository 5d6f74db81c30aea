"""Authorization of calls, by the admin key alone or by the roles of known callers."""

import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor

from recparams_server.contract.errors import error
from recparams_server.contract.headers import ADMIN_KEY_HEADER, API_KEY_HEADER
from recparams_server.rpc.methods import method_policy
from recparams_server.settings import Settings
from recparams_server.settings.callers import Caller, Role, key_digest


class Check(Protocol):
    """A check of who makes a call."""

    def check(self, context: Any) -> str | None:
        """Returns the caller's name, or None. Raises ServiceError if it is not let in."""


Admission = Callable[[MethodDescriptor], Check | None]
"""Gives the check of a method, or None if everybody may call it."""


class AdminKey:
    """A check of the x-admin-key metadata of a call, in constant time.

    Args:
        digests: SHA-256 digests of the valid keys.
    """

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._digests = digests

    def check(self, context: Any) -> None:
        """Raises UNAUTHENTICATED without a key, PERMISSION_DENIED for a wrong one."""
        given = dict(context.invocation_metadata() or ()).get(ADMIN_KEY_HEADER)
        if given is None:
            raise error(
                grpc.StatusCode.UNAUTHENTICATED,
                "NO_ADMIN_KEY",
                f"{ADMIN_KEY_HEADER} metadata is required",
            )
        sent = key_digest(given)
        # A sum does not end at the right one, so time does not tell which that is.
        if not sum(hmac.compare_digest(sent, digest) for digest in self._digests):
            raise error(
                grpc.StatusCode.PERMISSION_DENIED, "WRONG_ADMIN_KEY", f"{ADMIN_KEY_HEADER} is wrong"
            )


class Callers:
    """The known callers, found by their key or by the common name of their certificate."""

    def __init__(self, callers: Iterable[Caller]) -> None:
        known = list(callers)
        self._by_key = {caller.key: caller for caller in known if caller.key}
        self._by_name = {caller.common_name: caller for caller in known if caller.common_name}

    def of(self, context: Any) -> Caller:
        """Returns the caller of a call.

        Raises ServiceError: UNAUTHENTICATED without credentials, PERMISSION_DENIED if they belong
        to no caller.
        """
        metadata = dict(context.invocation_metadata() or ())
        key = metadata.get(API_KEY_HEADER) or metadata.get(ADMIN_KEY_HEADER)
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
    """A check that a caller has a role, or the role administer."""

    def __init__(self, callers: Callers, role: Role) -> None:
        self._callers = callers
        self._role = role

    def check(self, context: Any) -> str:
        """Raises UNAUTHENTICATED without credentials, PERMISSION_DENIED without the role."""
        caller = self._callers.of(context)
        if self._role not in caller.roles and Role.ADMINISTER not in caller.roles:
            raise error(
                grpc.StatusCode.PERMISSION_DENIED,
                "ROLE_MISSING",
                f"caller {caller.name!r} does not have the role {self._role}",
                {"caller": caller.name, "role": self._role},
            )
        return caller.name


def admission(settings: Settings) -> Admission:
    """Returns the check of each method that the settings ask for."""
    hashes = settings.admin_digests()
    if settings.authorization == "admin_only":
        admin = AdminKey(hashes)
        open_roles = (None, Role.RECOMMEND, Role.RECORD)
        return lambda method: None if method_policy(method).role in open_roles else admin
    administer = frozenset({Role.ADMINISTER})
    administrators = [Caller("admin", administer, key=digest) for digest in hashes]
    callers = Callers([*settings.known_callers(), *administrators])

    def check(method: MethodDescriptor) -> Check | None:
        role = method_policy(method).role
        return None if role is None else RoleCheck(callers, role)

    return check
