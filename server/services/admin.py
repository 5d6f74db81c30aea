"""Who may train and administer: callers that send the admin key."""

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import grpc

from server.errors import error

Q = TypeVar("Q")
R = TypeVar("R")

HEADER = "x-admin-key"


class AdminKey:
    """Checks the x-admin-key metadata of a call in constant time."""

    def __init__(self, key: str) -> None:
        self._key = key.encode()

    def check(self, context: Any) -> None:
        """Raises UNAUTHENTICATED without a key, PERMISSION_DENIED for a wrong one."""
        given = dict(context.invocation_metadata() or ()).get(HEADER)
        if given is None:
            raise error(
                grpc.StatusCode.UNAUTHENTICATED, "NO_ADMIN_KEY", f"{HEADER} metadata is required"
            )
        sent = given if isinstance(given, bytes) else given.encode()
        if not hmac.compare_digest(sent, self._key):
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
