"""The parts of a running server that its services share."""

from dataclasses import dataclass

from recparams_server.contract.errors import store_unavailable
from recparams_server.jobs.processes import Jobs
from recparams_server.serving.decider import Decider
from recparams_server.serving.policies import PolicyHolder
from recparams_server.serving.tokens import TokenCodec
from recparams_server.store.database import Pool


@dataclass
class Runtime:
    """Parts that are set as the server starts.

    Attributes:
        holder: holds the policy in memory.
        pool: connections to the database, once it has answered.
        tokens: issues and reads decision tokens, once the token key is known.
        decider: makes decisions, once the token key is known.
        jobs: the processes that do long work, once they can be started.
    """

    holder: PolicyHolder
    pool: Pool | None = None
    tokens: TokenCodec | None = None
    decider: Decider | None = None
    jobs: Jobs | None = None

    def require_pool(self) -> Pool:
        """Returns the pool. Raises UNAVAILABLE before the first connection."""
        if self.pool is None:
            raise store_unavailable()
        return self.pool

    def require_jobs(self) -> Jobs:
        """Returns the jobs. Raises UNAVAILABLE before the first connection."""
        if self.jobs is None:
            raise store_unavailable()
        return self.jobs

    def require_decider(self) -> Decider:
        """Returns the decider. Raises UNAVAILABLE until the token key is known."""
        if self.decider is None:
            raise store_unavailable()
        return self.decider

    def require_tokens(self) -> TokenCodec:
        """Returns the token codec. Raises UNAVAILABLE until the token key is known."""
        if self.tokens is None:
            raise store_unavailable()
        return self.tokens
