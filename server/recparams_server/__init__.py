"""The recparams service: gRPC, Postgres and process handling around `recparams_rl`."""

import os

# Workers are started by exec, for which gRPC's fork handlers only write noise to the log.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# gRPC's core writes plain text among the structured log lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
