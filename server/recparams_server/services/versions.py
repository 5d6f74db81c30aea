"""Checks that the services make before a version is served."""

import contextlib
from collections.abc import Iterable, Iterator

import grpc

from recparams_rl.arms import RULES_VERSION, Activation
from recparams_server.contract.errors import ServiceError, error, invalid
from recparams_server.jobs.requests import ACTIVE
from recparams_server.services.runtime import Runtime
from recparams_server.store import models
from recparams_server.store.activations import current_activation
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import MissingModelError, ModelError

LONGEST_REASON = 500


async def check_servable(runtime: Runtime, connection: Connection, version: int) -> None:
    """Raises NOT_FOUND or FAILED_PRECONDITION for a version that servers would refuse."""
    if version != RULES_VERSION:
        with _refusals():
            await models.load_policy(connection, version, runtime.holder.space)


async def check_plan(runtime: Runtime, connection: Connection, plan: Activation) -> None:
    """Raises as `check_servable` for the versions of every arm."""
    with _refusals():
        await models.load_plan(connection, plan, runtime.holder.space)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turns what loading a version raises into the errors that callers get."""
    try:
        yield
    except MissingModelError as failure:
        raise error(grpc.StatusCode.NOT_FOUND, failure.reason, str(failure)) from None
    except ModelError as failure:
        raise refused(failure.reason, str(failure)) from None


async def check_evaluated(runtime: Runtime, policies: Iterable[int | str]) -> None:
    """Raises as `check_servable` for the versions among policies to evaluate."""
    async with runtime.require_pool().acquire() as connection:
        for policy in policies:
            if policy == ACTIVE:
                policy = (await current_activation(connection)).version
            if isinstance(policy, int):
                await check_servable(runtime, connection, policy)


def check_reason(reason: str) -> None:
    """Raises INVALID_ARGUMENT for a reason that cannot be kept."""
    if len(reason) > LONGEST_REASON or "\x00" in reason:
        raise invalid("reason", f"must have up to {LONGEST_REASON} characters and no NUL")


def refused(reason: str, message: str) -> ServiceError:
    """Returns FAILED_PRECONDITION with a machine-readable reason."""
    return error(grpc.StatusCode.FAILED_PRECONDITION, reason, message)
