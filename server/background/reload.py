"""Keeps the policies in memory up to date with the database."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import structlog

from rl.arms import RULES_VERSION, Activation
from server.observability import metrics
from server.serving.policies import Arm, PolicyHolder, Serving, Shadow
from server.store import models, shadows
from server.store.activations import MODEL_CHANNEL, current_activation, fetch_activation
from server.store.database import Connection, check_writable
from server.store.errors import DATABASE_ERRORS, STORE_ERRORS
from server.store.profiles import EVERYBODY, PROFILES_CHANNEL
from server.store.training import exploration_rate

log = structlog.get_logger()
FIRST_PAUSE = 0.1


async def keep_up_to_date(
    url: str,
    holder: PolicyHolder,
    forget_profile: Callable[[str], None],
    poll_seconds: float,
    on_connected: Callable[[], None],
) -> None:
    """Reloads at every notification, and polls in case one is missed. Runs until cancelled.

    Survives restarts of the database: it connects again, with growing pauses, and looks at once.

    Args:
        url: the database, reached by a connection of its own.
        holder: what to reload.
        forget_profile: called with the user id of a changed profile.
        poll_seconds: mean time between two looks without a notification.
        on_connected: called whenever the first look after connecting has succeeded.
    """
    delay = FIRST_PAUSE

    def connected() -> None:
        nonlocal delay
        delay = FIRST_PAUSE
        on_connected()

    while True:
        connection = None
        try:
            connection = await asyncpg.connect(url, timeout=5, command_timeout=10)
            await check_writable(connection)
            await _follow(connection, holder, forget_profile, poll_seconds, connected)
        except DATABASE_ERRORS as failure:
            log.warning("lost touch with the database", error=failure, retry_in=delay)
            metrics.count_reload("failed")
        finally:
            if connection is not None:
                with contextlib.suppress(*STORE_ERRORS):
                    connection.terminate()
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # noqa: S311 - spreads replicas out
        delay = min(delay * 2, 2.0)


async def _follow(
    connection: Connection,
    holder: PolicyHolder,
    forget_profile: Callable[[str], None],
    poll_seconds: float,
    on_connected: Callable[[], None],
) -> None:
    wake = asyncio.Event()
    await connection.add_listener(MODEL_CHANNEL, lambda *_: wake.set())
    await connection.add_listener(
        PROFILES_CHANNEL, lambda _connection, _pid, _channel, user: forget_profile(str(user))
    )
    connection.add_termination_listener(lambda _: wake.set())
    forget_profile(EVERYBODY)
    await reload(holder, connection)
    on_connected()
    while not connection.is_closed():
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads replicas out
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), poll_seconds * jitter)
        wake.clear()
        if not connection.is_closed():
            await reload(holder, connection)
    raise ConnectionResetError("the connection that listens was closed")


async def reload(holder: PolicyHolder, connection: Connection) -> None:
    """Serves what the newest activation says, if its versions pass their checks.

    An activation with a version that fails them is refused: what is served goes on, or, if that is
    only the rules, the nearest earlier activation that passes.
    """
    await _reload_shadow(holder, connection)
    activation = await current_activation(connection)
    exploration = await exploration_rate(connection)
    before = holder.serving
    if activation.id == before.activation:
        if exploration not in (None, before.exploration):
            holder.serve(before.exploring(exploration))
        return
    refused = ""
    candidate = activation
    while True:
        try:
            arms = await _arms(holder, connection, candidate)
            break
        except models.UnservableModelError as failure:
            refused = refused or str(failure)
            log.error("model refused", version=candidate.version, error=str(failure))
        if before.version != RULES_VERSION:
            arms, candidate = before.arms, before.plan
            break
        candidate = await fetch_activation(connection, candidate.rollback_to or 0)
    serving = Serving(arms, candidate, activation.id, refused, before.shadow)
    holder.serve(serving.exploring(exploration))
    metrics.count_reload("refused" if refused else "served")
    log.info(
        "policy served",
        version=candidate.version,
        activation=activation.id,
        arms={arm.name: round(100 * arm.share, 4) for arm in arms},
    )


async def _arms(holder: PolicyHolder, connection: Connection, plan: Activation) -> tuple[Arm, ...]:
    policies = await models.load_plan(connection, plan, holder.space)
    return tuple(
        Arm(name, arm.version, policies.get(arm.version, holder.rules), arm.share)
        for name, arm in plan.arms().items()
    )


async def _reload_shadow(holder: PolicyHolder, connection: Connection) -> None:
    wanted = await shadows.current(connection)
    before = holder.serving.shadow
    if wanted is None or not wanted.version:
        shadow = None
    elif before is not None and before.id == wanted.id:
        return
    else:
        try:
            policy = await models.load_policy(connection, wanted.version, holder.space)
            shadow = Shadow(wanted.id, wanted.version, policy)
        except models.UnservableModelError as failure:
            log.error("shadow refused", version=wanted.version, error=str(failure))
            shadow = None
    if shadow is not before:
        holder.serve(replace(holder.serving, shadow=shadow))
