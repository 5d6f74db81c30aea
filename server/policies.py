"""The policy in memory, and keeping it up to date with the database."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass

import asyncpg
import structlog

from rl.policy import Policy, rule_based_policy
from rl.state import StateSpace
from server.database import Connection
from server.errors import STORE_ERRORS
from server.store import models
from server.store.profiles import EVERYBODY, PROFILES_CHANNEL

log = structlog.get_logger()
FIRST_PAUSE = 0.1


@dataclass(frozen=True)
class Serving:
    """One whole version, swapped as one reference.

    Attributes:
        policy: what to serve.
        version: its number, 0 for the rules.
        activation: the newest activation seen, served or refused.
        refused: why the activated version is not the one served; empty when it is.
    """

    policy: Policy
    version: int
    activation: int
    refused: str = ""


class PolicyHolder:
    """Holds the policy that is served. Readers take `serving` once for each answer."""

    def __init__(self, space: StateSpace, initial_epsilon: float) -> None:
        self.space = space
        self.rules = rule_based_policy(space, initial_epsilon)
        self.serving = Serving(self.rules, models.RULES_VERSION, -1)

    async def reload(self, connection: Connection) -> None:
        """Serves what the newest activation says, if it passes its checks.

        A version that fails them is refused: what is served goes on, or, where that is only the
        rules, the nearest earlier activation that passes.
        """
        activation = await models.current_activation(connection)
        before = self.serving
        if activation.id == before.activation:
            return
        refused = ""
        candidate = activation
        while True:
            try:
                policy = await self._load(connection, candidate.version)
                break
            except (models.CorruptModelError, models.IncompatibleModelError) as failure:
                refused = refused or str(failure)
                log.error("model refused", version=candidate.version, error=str(failure))
            if before.version != models.RULES_VERSION:
                policy, candidate = before.policy, models.Activation(0, before.version, None)
                break
            candidate = await models.fetch_activation(connection, candidate.rollback_to or 0)
        self.serving = Serving(policy, candidate.version, activation.id, refused)
        log.info("policy served", version=candidate.version, activation=activation.id)

    async def _load(self, connection: Connection, version: int) -> Policy:
        if version == models.RULES_VERSION:
            return self.rules
        return await models.load_policy(connection, version, self.space)


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
            await _follow(connection, holder, forget_profile, poll_seconds, connected)
        except (*STORE_ERRORS, asyncpg.PostgresError) as failure:
            log.warning("lost touch with the database", error=repr(failure), retry_in=delay)
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
    await connection.add_listener(models.MODEL_CHANNEL, lambda *_: wake.set())
    await connection.add_listener(
        PROFILES_CHANNEL, lambda _connection, _pid, _channel, user: forget_profile(str(user))
    )
    connection.add_termination_listener(lambda _: wake.set())
    forget_profile(EVERYBODY)
    await holder.reload(connection)
    on_connected()
    while not connection.is_closed():
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads replicas out
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(wake.wait(), poll_seconds * jitter)
        wake.clear()
        if not connection.is_closed():
            await holder.reload(connection)
    raise ConnectionResetError("the connection that listens was closed")
