"""Clients of a server that a test has."""

from typing import Any

from recparams_client.admin import AdminClient
from recparams_client.aio import AsyncRecParamsClient
from recparams_client.local import LocalPolicy
from recparams_client.sync import RecParamsClient

PATIENCE = 10.0
"""Seconds that decisions may take in a test, where the machine may be busy."""


class Reachable:
    """A server on this machine.

    Args:
        address: host:port.

    Attributes:
        address: the same.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def client(self, **options: Any) -> RecParamsClient:
        """Returns a client; options as of `RecParamsClient`. Close it."""
        return RecParamsClient(self.address, **{"decision_timeout": PATIENCE, **options})

    def async_client(self, **options: Any) -> AsyncRecParamsClient:
        """Returns an asyncio client; options as of `AsyncRecParamsClient`. Close it."""
        return AsyncRecParamsClient(self.address, **{"decision_timeout": PATIENCE, **options})

    def local_policy(self, **options: Any) -> LocalPolicy:
        """Returns a policy that has arrived; options as of `LocalPolicy`. Close it.

        Raises:
            RuntimeError: it does not arrive.
        """
        policy = LocalPolicy(self.address, **options)
        if not policy.wait(PATIENCE):
            policy.close()
            raise RuntimeError(f"no policy has arrived: {policy.problem}")
        return policy


class RunningServer(Reachable):
    """A real server.

    Attributes:
        admin_key: for `AdminClient` and `RLTrainingOrchestrator`.
    """

    def __init__(self, address: str, admin_key: str) -> None:
        super().__init__(address)
        self.admin_key = admin_key

    def admin(self, **options: Any) -> AdminClient:
        """Returns a client that may administer; options as of `AdminClient`. Close it."""
        return AdminClient(self.address, **{"admin_key": self.admin_key, **options})
