"""Snapshots of the policy in memory, encoded once for all callers that decide by themselves."""

import asyncio
import hashlib
import zlib
from dataclasses import dataclass

import numpy as np

from recparams.v1 import policy_pb2 as pb
from recparams.v1.recommendation_pb2 import FallbackReason
from recparams.v1.types_pb2 import ContentType, Mood, TimeOfDay
from recparams_rl.arms import HOLDBACK_SALT, RULES_VERSION
from recparams_rl.exploration import Exploration
from recparams_rl.policy import GreedyTable
from recparams_rl.state import StateSpace
from recparams_server.contract.enums import enum_number
from recparams_server.contract.vocabulary import ARM_NUMBERS, SOURCE_NUMBERS
from recparams_server.serving.policies import Arm, PolicyHolder, Serving


@dataclass(frozen=True)
class EncodedSnapshot:
    """An encoded PolicySnapshot.

    Attributes:
        compressed: the message, compressed with zlib.
        checksum: SHA-256 of the message before compression.
    """

    compressed: bytes
    checksum: bytes


class Snapshots:
    """Encodes each policy when its snapshot is first asked for.

    Args:
        holder: holds the policy in memory.
        exploration: how it explores.
    """

    def __init__(self, holder: PolicyHolder, exploration: Exploration) -> None:
        self._holder = holder
        self._exploration = exploration
        self._lock = asyncio.Lock()
        self._encoded: tuple[tuple[Arm, ...], EncodedSnapshot] | None = None

    async def current(self) -> EncodedSnapshot:
        """Returns the snapshot of the policy in memory."""
        async with self._lock:
            serving = self._holder.serving
            # By the arms: a new shadow, of which callers see nothing, needs no new snapshot.
            if self._encoded is None or self._encoded[0] is not serving.arms:
                encoded = await asyncio.to_thread(
                    encode, self._holder.space, serving, self._exploration
                )
                self._encoded = serving.arms, encoded
            return self._encoded[1]


def encode(space: StateSpace, serving: Serving, exploration: Exploration) -> EncodedSnapshot:
    """Encodes a snapshot.

    Args:
        space: the state space.
        serving: the plan.
        exploration: as in `Snapshots`.
    """
    data = _message(space, serving, exploration).SerializeToString(deterministic=True)
    return EncodedSnapshot(zlib.compress(data), hashlib.sha256(data).digest())


def _message(space: StateSpace, serving: Serving, exploration: Exploration) -> pb.PolicySnapshot:
    plan = serving.plan
    no_model = serving.version == RULES_VERSION
    exploration = exploration.beside(serving.version)
    return pb.PolicySnapshot(
        activation=plan.id,
        bins=space.bins,
        cuts=space.cuts,
        content_types=[enum_number(ContentType, name) for name in space.content_types],
        moods=[enum_number(Mood, name) for name in space.moods],
        times_of_day=[enum_number(TimeOfDay, name) for name in space.times_of_day],
        salt=plan.split.salt,
        percent=plan.split.percent,
        rule_based_percent=plan.split.rule_based_percent,
        arms=[_arm(arm, exploration, no_model) for arm in serving.arms],
        holdback_percent=plan.split.holdback_percent,
        holdback_salt=HOLDBACK_SALT,
    )


def _arm(arm: Arm, exploration: Exploration, no_model: bool) -> pb.ServedArm:
    message = pb.ServedArm(
        arm=ARM_NUMBERS[arm.name],
        version=arm.version,
        share=arm.share,
        epsilon=arm.policy.epsilon if exploration.epsilon is None else exploration.epsilon,
    )
    if no_model:
        message.fallback_reason = FallbackReason.FALLBACK_REASON_NO_MODEL
    if isinstance(arm.policy, GreedyTable):
        sources = np.frombuffer(arm.policy.sources, dtype=np.uint8)
        message.actions = arm.policy.actions
        message.sources = np.array(SOURCE_NUMBERS, dtype=np.uint8)[sources].tobytes()
        draws = arm.policy.draws
        if exploration.by_draws and draws is not None:
            message.draws.CopyFrom(
                pb.Draws(
                    n=draws.n,
                    bins=draws.space.bins,
                    cells=draws.cells.tolist(),
                    counts=draws.counts,
                    actions=draws.actions,
                )
            )
    return message
