"""The table of all RPCs: the role that each asks for, and its kind of call."""

from dataclasses import dataclass
from enum import Enum, auto

from google.protobuf.descriptor import MethodDescriptor

from recparams_server.contract.sizes import LARGEST_CHUNK, MOST_DELETED, MOST_RECORDS, MOST_REQUESTS
from recparams_server.settings.callers import Role


class Kind(Enum):
    """The kind of a call, which sets its limits.

    Attributes:
        QUICK: the handler gets and gives encoded messages, and has no time limit of its own: it
            waits for nothing that could last.
        NORMAL: ends after `call_timeout_seconds`.
        LONG: works through whole periods or files; ends after `long_call_timeout_seconds`.
        ENDLESS: a stream that lasts as long as what it tells of, or until its caller takes
            nothing of it for `watch_stall_seconds`. The handler gives encoded messages as
            their parts, which those who watch the same share.
    """

    QUICK = auto()
    NORMAL = auto()
    LONG = auto()
    ENDLESS = auto()


KIB = 1024


@dataclass(frozen=True)
class MethodPolicy:
    """The policy of one RPC.

    Attributes:
        role: the role a caller needs; None lets everybody in.
        kind: sets the limits of the call.
        most_bytes: size of a request, encoded. Parsing a request of any shape takes some ten
            milliseconds a MiB, in which nobody else is answered.
        most_entries: of the request's one repeated field, whose number is 1; None where a request
            has none, or is too small for it to matter.
    """

    role: Role | None
    kind: Kind = Kind.NORMAL
    most_bytes: int = 64 * KIB
    most_entries: int | None = None


METHODS = {
    "GetRecommendationParams": MethodPolicy(Role.RECOMMEND, Kind.QUICK),
    "BatchGetRecommendationParams": MethodPolicy(
        Role.RECOMMEND, Kind.QUICK, 256 * KIB, MOST_REQUESTS
    ),
    "RecordInteractions": MethodPolicy(Role.RECORD, Kind.NORMAL, 1024 * KIB, MOST_RECORDS),
    "PutPersonalityProfiles": MethodPolicy(Role.RECORD, Kind.NORMAL, 1024 * KIB, MOST_RECORDS),
    "WatchPolicy": MethodPolicy(Role.RECORD, Kind.ENDLESS),
    "TriggerTraining": MethodPolicy(Role.TRAIN),
    "GetTrainingRun": MethodPolicy(Role.TRAIN),
    "ListTrainingRuns": MethodPolicy(Role.TRAIN),
    "WatchTrainingRun": MethodPolicy(Role.TRAIN, Kind.ENDLESS),
    "CancelTrainingRun": MethodPolicy(Role.TRAIN),
    "Evaluate": MethodPolicy(Role.TRAIN, Kind.LONG),
    "Tune": MethodPolicy(Role.TRAIN, Kind.ENDLESS),
    "ListModels": MethodPolicy(Role.ADMINISTER),
    "GetModel": MethodPolicy(Role.ADMINISTER),
    "ActivateModel": MethodPolicy(Role.ADMINISTER),
    "RollbackModel": MethodPolicy(Role.ADMINISTER),
    "ExportModel": MethodPolicy(Role.ADMINISTER, Kind.LONG),
    "ImportModel": MethodPolicy(Role.ADMINISTER, Kind.LONG, LARGEST_CHUNK + KIB),
    "DiffModels": MethodPolicy(Role.ADMINISTER, Kind.LONG),
    "DeleteModels": MethodPolicy(Role.ADMINISTER, most_entries=MOST_DELETED),
    "SetRollout": MethodPolicy(Role.ADMINISTER),
    "GetRollout": MethodPolicy(Role.ADMINISTER),
    "GetExperiment": MethodPolicy(Role.ADMINISTER, Kind.LONG),
    "SetShadow": MethodPolicy(Role.ADMINISTER),
    "GetShadow": MethodPolicy(Role.ADMINISTER, Kind.LONG),
    "GetSystemHealth": MethodPolicy(None),
    "DeleteUserData": MethodPolicy(Role.ADMINISTER),
}
"""By method name; every RPC of the contract has a row."""


def method_policy(method: MethodDescriptor) -> MethodPolicy:
    """Returns the policy of an RPC. Raises KeyError if the table has no row for it."""
    return METHODS[method.name]
