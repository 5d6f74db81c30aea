"""Who may train and administer: callers that send an admin key."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeVar

import grpc

from server.callers import key_digest
from server.errors import error

Q = TypeVar("Q")
R = TypeVar("R")

HEADER = "x-admin-key"


class Check(Protocol):
    """Lets callers in, or does not."""

    def check(self, context: Any) -> None:
        """Raises ServiceError for a caller of this call that is not let in."""


class AdminKey:
    """Checks the x-admin-key metadata of a call in constant time.

    Args:
        digests: of the keys that are valid.
    """

    def __init__(self, digests: Sequence[bytes]) -> None:
        self._digests = digests

    def check(self, context: Any) -> None:
        """Raises UNAUTHENTICATED without a key, PERMISSION_DENIED for a wrong one."""
        given = dict(context.invocation_metadata() or ()).get(HEADER)
        if given is None:
            raise error(
                grpc.StatusCode.UNAUTHENTICATED, "NO_ADMIN_KEY", f"{HEADER} metadata is required"
            )
        sent = key_digest(given)
        # A sum does not end at the right one, so time does not tell which that is.
        if not sum(hmac.compare_digest(sent, digest) for digest in self._digests):
            raise error(grpc.StatusCode.PERMISSION_DENIED, "WRONG_ADMIN_KEY", f"{HEADER} is wrong")


def admin(
    method: Callable[[Any, Q, Any], Awaitable[R]],
) -> Callable[[Any, Q, Any], Awaitable[R]]:
    """Lets a unary handler of a service with an `admin_key` run only for the right key."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Any) -> R:
        self.admin_key.check(context)
        return await method(self, request, context)

    return call


def streaming_admin(
    method: Callable[[Any, Q, Any], AsyncIterator[R]],
) -> Callable[[Any, Q, Any], AsyncIterator[R]]:
    """The same for a response-streaming handler."""

    @wraps(method)
    async def call(self: Any, request: Q, context: Any) -> AsyncIterator[R]:
        self.admin_key.check(context)
        async for response in method(self, request, context):
            yield response

    return call
