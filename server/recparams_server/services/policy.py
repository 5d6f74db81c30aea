"""PolicyService: streams the served policy to callers that decide by themselves."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from recparams.v1 import policy_pb2 as pb
from recparams.v1 import policy_pb2_grpc as grpc_pb
from recparams_server.contract.errors import invalid, store_unavailable
from recparams_server.observability import metrics
from recparams_server.rpc.turns import turn
from recparams_server.services.runtime import Runtime
from recparams_server.services.served_plans import told_to_callers
from recparams_server.serving.delegated_tokens import LIFETIME_SECONDS, DelegatedKey, Told
from recparams_server.serving.snapshots import EncodedSnapshot, Snapshots
from recparams_server.settings import Settings

CHECKSUM_BYTES = 32
Parts = tuple[bytes, ...]
"""An encoded message in parts."""


class PolicyService(grpc_pb.PolicyServiceServicer):
    """Streams the policy in memory."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._runtime = runtime
        self._heartbeat = settings.watch_heartbeat_seconds
        self._exploration = settings.served_exploration()
        self._snapshots = Snapshots(runtime.holder, self._exploration)
        self._message: tuple[EncodedSnapshot, bytes] | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ends all streams in good order, so that watchers turn to other replicas at once."""
        self._stopping.set()
        self._runtime.holder.replaced.set()

    async def WatchPolicy(  # type: ignore[override]
        self, request: pb.WatchPolicyRequest, context: Any
    ) -> AsyncIterator[Parts]:
        known = request.known_checksum
        if len(known) not in (0, CHECKSUM_BYTES):
            raise invalid("known_checksum", f"must have {CHECKSUM_BYTES} bytes, or none")
        tokens = self._runtime.require_tokens()
        if not self._runtime.holder.is_loaded:
            raise store_unavailable()
        key: DelegatedKey | None = None
        told: Told | None = None
        with metrics.WATCHERS.track_inprogress():
            while not self._stopping.is_set():
                # A change wakes all who watch at once.
                await turn()
                # Taken before the snapshot, so that no change in between is missed.
                replaced = self._runtime.holder.replaced
                snapshot = await self._snapshots.current()
                own = pb.WatchPolicyResponse(
                    checksum=snapshot.checksum, heartbeat_seconds=self._heartbeat
                )
                now = int(time.time())
                current = told_to_callers(self._exploration, self._runtime.holder)
                renewed = key is None or now > key.expires_at - LIFETIME_SECONDS // 2
                if key is None or renewed or current != told:
                    told = current
                    key = tokens.delegate(now, told)
                    own.token_key.id, own.token_key.key = key.id, key.key
                    own.token_key.expires_at.seconds = key.expires_at
                # Encoded messages that follow each other are one, with the fields of both.
                shared = () if snapshot.checksum == known else (self._encoded(snapshot),)
                yield (*shared, own.SerializeToString())
                known = snapshot.checksum
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(replaced.wait(), self._heartbeat)

    def _encoded(self, snapshot: EncodedSnapshot) -> bytes:
        """Returns the message with a snapshot and nothing else, one for all who watch."""
        if self._message is None or self._message[0] is not snapshot:
            message = pb.WatchPolicyResponse(snapshot=snapshot.compressed)
            self._message = snapshot, message.SerializeToString()
        return self._message[1]
