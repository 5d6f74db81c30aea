"""Keeps the policies in memory up to date with the database."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import structlog

from recparams_rl.arms import RULES_VERSION
from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.observability import metrics
from recparams_server.serving.policies import Arm, PolicyHolder, Shadow
from recparams_server.store import models, shadows
from recparams_server.store.activations import MODEL_CHANNEL, current_activation, newest_passed_over
from recparams_server.store.database import Connection, check_writable
from recparams_server.store.errors import DATABASE_ERRORS, STORE_ERRORS
from recparams_server.store.fallback import Servable, nearest_servable
from recparams_server.store.model_errors import ModelError
from recparams_server.store.profiles import EVERYBODY, PROFILES_CHANNEL
from recparams_server.store.training import exploration_rate

log = structlog.get_logger()
JITTER = random.Random()  # noqa: S311 - not secrecy
"""Spreads replicas out; of its own, so that what decisions draw can be repeated by a seed."""
FIRST_PAUSE = 0.1
REFUSED_SECONDS = 60.0
"""Until what was refused is tried again: its row may have been repaired."""


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
        await asyncio.sleep(delay * JITTER.uniform(0.5, 1.5))
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
    tried = time.monotonic()
    while not connection.is_closed():
        jitter = JITTER.uniform(0.5, 1.5)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), poll_seconds * jitter)
        wake.clear()
        if not connection.is_closed():
            again = time.monotonic() - tried >= REFUSED_SECONDS
            await reload(holder, connection, again=again)
            if again:
                tried = time.monotonic()
    raise ConnectionResetError("the connection that listens was closed")


async def reload(holder: PolicyHolder, connection: Connection, *, again: bool = False) -> None:
    """Serves what the newest activation says, if its versions pass their checks.

    An activation with a version that fails them is refused: what is served goes on, or, if that is
    only the rules, the nearest earlier activation that passes.

    Args:
        holder: what to reload.
        connection: where to read.
        again: tries what was refused once more; otherwise that waits for something new.
    """
    await _reload_shadow(holder, connection, again)
    activation = await current_activation(connection)
    passed_over = await newest_passed_over(connection)
    exploration = await exploration_rate(connection)
    before = holder.serving
    is_known = (activation.id, passed_over) == (before.activation, before.passed_over)
    if is_known and not (again and before.refused):
        if exploration not in (None, before.exploration):
            holder.serve(before.exploring(exploration))
        return
    found = await nearest_servable(connection, activation, holder.space)
    refused = found.refused
    if passed_over and not refused:
        refused = f"activation {passed_over} is passed over: its number is above {LARGEST_NUMBER}"
    if is_known and refused == before.refused:
        return
    if refused:
        log.error("model refused", version=activation.version, error=refused)
    if found.refused and before.version != RULES_VERSION:
        arms, plan = before.arms, before.plan
    else:
        arms, plan = _arms(holder, found), found.plan
    serving = replace(
        before,
        arms=arms,
        plan=plan,
        activation=activation.id,
        refused=refused,
        passed_over=passed_over,
        exploration=None,
    )
    holder.serve(serving.exploring(exploration))
    metrics.count_reload("refused" if refused else "served")
    log.info(
        "policy served",
        version=plan.version,
        activation=activation.id,
        arms={arm.name: round(100 * arm.share, 4) for arm in arms},
    )


def _arms(holder: PolicyHolder, found: Servable) -> tuple[Arm, ...]:
    return tuple(
        Arm(name, arm.version, found.policies.get(arm.version, holder.rules), arm.share)
        for name, arm in found.plan.arms().items()
    )


async def _reload_shadow(holder: PolicyHolder, connection: Connection, again: bool) -> None:
    wanted = await shadows.current(connection)
    before = holder.serving.shadow
    shadow, refused = None, 0
    if wanted is not None and wanted.version:
        known = holder.serving.refused_shadow if before is None else before.id
        if known == wanted.id and not (again and before is None):
            return
        try:
            policy = await models.load_policy(connection, wanted.version, holder.space)
            shadow = Shadow(wanted.id, wanted.version, policy)
        except ModelError as failure:
            refused = wanted.id
            if known != wanted.id:
                log.error("shadow refused", version=wanted.version, error=str(failure))
    if shadow is not before or refused != holder.serving.refused_shadow:
        holder.serve(replace(holder.serving, shadow=shadow, refused_shadow=refused))
