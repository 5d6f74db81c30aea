"""PolicyService: streams the served policy to callers that decide by themselves."""

import time
from collections.abc import AsyncIterator
from typing import Any

from recparams.v1 import policy_pb2 as pb
from recparams.v1 import policy_pb2_grpc as grpc_pb
from recparams_server.contract.errors import invalid, store_unavailable
from recparams_server.observability import metrics
from recparams_server.services.runtime import Runtime
from recparams_server.services.served_plans import told_to_callers
from recparams_server.serving.delegated_tokens import LIFETIME_SECONDS, DelegatedKey
from recparams_server.serving.snapshots import EncodedSnapshot, Snapshots
from recparams_server.serving.tokens import TokenCodec
from recparams_server.settings import Settings
from recparams_server.turns import Waiting, turn

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
        self._stopping = False
        self._watching = Waiting(self._heartbeat)
        runtime.holder.on_change = self._watching.wake

    def stop(self) -> None:
        """Ends all streams in good order, so that watchers turn to other replicas at once."""
        self._stopping = True
        self._watching.wake()

    async def WatchPolicy(  # type: ignore[override]
        self, request: pb.WatchPolicyRequest, context: Any
    ) -> AsyncIterator[Parts]:
        known = request.known_checksum
        if len(known) not in (0, CHECKSUM_BYTES):
            raise invalid("known_checksum", f"must have {CHECKSUM_BYTES} bytes, or none")
        tokens = self._runtime.require_tokens()
        holder = self._runtime.holder
        if not holder.is_loaded:
            raise store_unavailable()
        key: DelegatedKey | None = None
        with metrics.WATCHERS.track_inprogress():
            # Thousands may come at once, as from another server that ends.
            await turn()
            while not self._stopping:
                # Taken before the snapshot, so that no change in between is missed.
                serving = holder.serving
                snapshot = await self._snapshots.current()
                before, key = key, self._key(tokens, key)
                own = self._own(snapshot, None if key is before else key)
                # Encoded messages that follow each other are one, with the fields of both.
                yield (own,) if snapshot.checksum == known else (self._encoded(snapshot), own)
                known = snapshot.checksum
                if holder.serving is serving and not self._stopping:
                    await self._watching.wait()

    def _key(self, tokens: TokenCodec, held: DelegatedKey | None) -> DelegatedKey:
        """Returns the key that a watcher holds, or a new one if it is time for that."""
        now, told = int(time.time()), told_to_callers(self._exploration, self._runtime.holder)
        if held is None or held.told != told or now > held.expires_at - LIFETIME_SECONDS // 2:
            return tokens.delegate(now, told)
        return held

    def _own(self, snapshot: EncodedSnapshot, key: DelegatedKey | None) -> bytes:
        """Returns the part of a message that is one watcher's own."""
        message = pb.WatchPolicyResponse(
            checksum=snapshot.checksum, heartbeat_seconds=self._heartbeat
        )
        if key is not None:
            message.token_key.id, message.token_key.key = key.id, key.key
            message.token_key.expires_at.seconds = key.expires_at
        return message.SerializeToString()

    def _encoded(self, snapshot: EncodedSnapshot) -> bytes:
        """Returns the message with a snapshot and nothing else, one for all who watch."""
        if self._message is None or self._message[0] is not snapshot:
            message = pb.WatchPolicyResponse(snapshot=snapshot.compressed)
            self._message = snapshot, message.SerializeToString()
        return self._message[1]
