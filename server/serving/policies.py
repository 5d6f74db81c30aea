"""The policy in memory, and keeping it up to date with the database."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import asyncpg
import structlog

from rl.arms import NEVER_ACTIVATED, RULE_BASED, RULES_VERSION, Activation
from rl.policy import GreedyTable, Policy, rule_based_policy
from rl.state import StateSpace
from server.observability import metrics
from server.store import models, shadows
from server.store.activations import MODEL_CHANNEL, current_activation, fetch_activation
from server.store.database import Connection
from server.store.errors import STORE_ERRORS
from server.store.profiles import EVERYBODY, PROFILES_CHANNEL

log = structlog.get_logger()
FIRST_PAUSE = 0.1


@dataclass(frozen=True)
class Arm:
    """People who are served one policy; `share` of all, 0 to 1."""

    name: str
    version: int
    policy: Policy
    share: float


@dataclass
class Shadow:
    """A version scored in passing, with what is counted since the last flush."""

    id: int
    version: int
    policy: Policy
    decisions: int = 0
    agreements: int = 0

    @property
    def actions(self) -> bytes:
        """Of every state, where its policy has one action a state; else nothing."""
        return self.policy.actions if isinstance(self.policy, GreedyTable) else b""


@dataclass(frozen=True)
class Serving:
    """One whole plan, swapped as one reference.

    Attributes:
        arms: every arm with people in it; their shares sum to 1.
        plan: the activation that is served.
        activation: the newest activation seen, served or refused.
        refused: why the newest activation is not the one served; empty when it is.
        shadow: a version scored in passing, or None.
    """

    arms: tuple[Arm, ...]
    plan: Activation
    activation: int
    refused: str = ""
    shadow: Shadow | None = None

    @property
    def version(self) -> int:
        """The version that is active or being rolled out."""
        return self.plan.version

    def arm_of(self, user_id: str) -> Arm:
        """The arm of a person."""
        if len(self.arms) == 1:
            return self.arms[0]
        name = self.plan.split.arm(user_id)
        # With the rules as baseline the previous arm and the rules' are one.
        return next((arm for arm in self.arms if arm.name == name), self.arms[-1])


class PolicyHolder:
    """Holds what is served. Readers take `serving` once for each answer.

    Attributes:
        space: the state space.
        rules: the hand-written rules as a policy.
        serving: what is served.
        replaced: set once that is no longer what is served, and replaced by a new event then.
    """

    def __init__(self, space: StateSpace, initial_epsilon: float) -> None:
        self.space = space
        self.rules = rule_based_policy(space, initial_epsilon)
        self.serving = Serving(
            (Arm(RULE_BASED, RULES_VERSION, self.rules, 1.0),), NEVER_ACTIVATED, -1
        )
        self.replaced = asyncio.Event()

    @property
    def is_loaded(self) -> bool:
        """Whether the database has said what to serve."""
        return self.serving.activation >= 0

    async def reload(self, connection: Connection) -> None:
        """Serves what the newest activation says, if its versions pass their checks.

        An activation with a version that fails them is refused: what is served goes on, or, where
        that is only the rules, the nearest earlier activation that passes.
        """
        await self._reload_shadow(connection)
        activation = await current_activation(connection)
        before = self.serving
        if activation.id == before.activation:
            return
        refused = ""
        candidate = activation
        while True:
            try:
                arms = await self._arms(connection, candidate)
                break
            except (models.CorruptModelError, models.IncompatibleModelError) as failure:
                refused = refused or str(failure)
                log.error("model refused", version=candidate.version, error=str(failure))
            if before.version != RULES_VERSION:
                arms, candidate = before.arms, before.plan
                break
            candidate = await fetch_activation(connection, candidate.rollback_to or 0)
        self.serve(Serving(arms, candidate, activation.id, refused, before.shadow))
        metrics.count_reload("refused" if refused else "served")
        log.info(
            "policy served",
            version=candidate.version,
            activation=activation.id,
            arms={arm.name: round(100 * arm.share, 4) for arm in arms},
        )

    async def _arms(self, connection: Connection, plan: Activation) -> tuple[Arm, ...]:
        return tuple(
            [
                Arm(name, arm.version, await self._load(connection, arm.version), arm.share)
                for name, arm in plan.arms().items()
            ]
        )

    async def _load(self, connection: Connection, version: int) -> Policy:
        if version == RULES_VERSION:
            return self.rules
        return await models.load_policy(connection, version, self.space)

    async def _reload_shadow(self, connection: Connection) -> None:
        wanted = await shadows.current(connection)
        before = self.serving.shadow
        if wanted is None or not wanted.version:
            shadow = None
        elif before is not None and before.id == wanted.id:
            return
        else:
            try:
                policy = await self._load(connection, wanted.version)
                shadow = Shadow(wanted.id, wanted.version, policy)
            except (models.CorruptModelError, models.IncompatibleModelError) as failure:
                log.error("shadow refused", version=wanted.version, error=str(failure))
                shadow = None
        if shadow is not before:
            self.serve(replace(self.serving, shadow=shadow))

    def serve(self, serving: Serving) -> None:
        """Serves something else from now on."""
        self.serving = serving
        self.replaced.set()
        self.replaced = asyncio.Event()


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
