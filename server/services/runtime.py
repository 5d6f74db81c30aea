"""What the services share once the database has answered."""

from dataclasses import dataclass

from server.contract.errors import store_unavailable
from server.jobs.processes import Jobs
from server.serving.decider import Decider
from server.serving.policies import PolicyHolder
from server.serving.tokens import TokenCodec
from server.store.database import Pool


@dataclass
class Runtime:
    """Parts that appear as the server starts; the `require` methods refuse calls until then."""

    holder: PolicyHolder
    pool: Pool | None = None
    tokens: TokenCodec | None = None
    decider: Decider | None = None
    jobs: Jobs | None = None

    def require_pool(self) -> Pool:
        """The pool. Raises UNAVAILABLE before the first connection."""
        if self.pool is None:
            raise store_unavailable()
        return self.pool

    def require_jobs(self) -> Jobs:
        """The jobs. Raises as `require_pool`."""
        if self.jobs is None:
            raise store_unavailable()
        return self.jobs

    def require_decider(self) -> Decider:
        """The decider. Raises UNAVAILABLE until the token key is known."""
        if self.decider is None:
            raise store_unavailable()
        return self.decider

    def require_tokens(self) -> TokenCodec:
        """The token codec. Raises as `require_decider`."""
        if self.tokens is None:
            raise store_unavailable()
        return self.tokens
