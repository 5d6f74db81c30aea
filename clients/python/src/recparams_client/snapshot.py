"""Snapshots of the served policy, as WatchPolicy sends them."""

import zlib
from dataclasses import dataclass
from hashlib import sha256

from google.protobuf.message import DecodeError

from recparams.v1 import policy_pb2, types_pb2
from recparams.v1 import recommendation_pb2 as pb
from recparams_client.conversion import CONTENT_TYPES, MOODS, TIMES_OF_DAY

N_ACTIONS = 27
LARGEST_SNAPSHOT = 1 << 28
"""Bytes, uncompressed."""


class SnapshotError(ValueError):
    """A snapshot that cannot be decided with. The message says why."""


@dataclass(frozen=True)
class Context:
    """A content type, mood and time of day.

    Attributes:
        index: its position within a personality cell.
        numbers: the contract's enum numbers.
    """

    index: int
    numbers: tuple[int, int, int]


@dataclass(frozen=True)
class Snapshot:
    """The served policy, and the split of people between its arms.

    Attributes:
        activation: its number; 0 before any.
        bins: of each trait.
        cuts: whole scores at which all bins but the first begin; empty if bins are of equal width.
        contexts: by their names (content type, mood, time of day).
        salt: of the hash that places people in [0, 100).
        percent: people below it get the version that is active or being rolled out.
        rule_based_percent: share of the people that get the rules, from 100 down.
        holdback_percent: people below it, placed by a hash with `holdback_salt`, get the rules
            whatever their place in the other; both shares above are of the rest.
        holdback_salt: of that hash.
        arms: every arm with people in it.
        checksum: SHA-256 of the message.
    """

    activation: int
    bins: int
    cuts: tuple[int, ...]
    contexts: dict[tuple[str, str, str], Context]
    salt: str
    percent: float
    rule_based_percent: float
    holdback_percent: float
    holdback_salt: str
    arms: tuple[policy_pb2.ServedArm, ...]
    checksum: bytes

    def arm_of(self, user: bytes) -> int:
        """Returns the position in `arms` of the arm of a person, a user id in UTF-8."""
        if len(self.arms) == 1:
            return 0
        wanted = self._wanted_arm(user)
        here = [arm.arm for arm in self.arms]
        # With the rules as baseline the previous arm and the rules' are one.
        return here.index(wanted) if wanted in here else len(here) - 1

    def _wanted_arm(self, user: bytes) -> pb.PolicyArm.ValueType:
        if self.holdback_percent > 0.0 and (
            100.0 * position_of(self.holdback_salt, user) < self.holdback_percent
        ):
            return pb.POLICY_ARM_RULE_BASED
        if self.percent == 100.0:
            return pb.POLICY_ARM_RL
        position = 100.0 * position_of(self.salt, user)
        if position < self.percent:
            return pb.POLICY_ARM_RL
        if position >= 100.0 - self.rule_based_percent:
            return pb.POLICY_ARM_RULE_BASED
        return pb.POLICY_ARM_PREVIOUS


def position_of(salt: str, user: bytes) -> float:
    """Returns the position of a person, a user id in UTF-8, in [0, 1)."""
    digest = sha256(f"{salt}:".encode() + user).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def decode(compressed: bytes, checksum: bytes) -> Snapshot:
    """Returns the snapshot of a response. Raises SnapshotError if anything is wrong with it."""
    try:
        inflater = zlib.decompressobj()
        data = inflater.decompress(compressed, LARGEST_SNAPSHOT)
        if not inflater.eof or sha256(data).digest() != checksum:
            raise SnapshotError("the snapshot does not have its checksum")
        message = policy_pb2.PolicySnapshot.FromString(data)
    except (zlib.error, DecodeError) as failure:
        raise SnapshotError(f"the snapshot cannot be read: {failure}") from None
    contexts = _contexts(message)
    _check(message, len(contexts))
    return Snapshot(
        activation=message.activation,
        bins=message.bins,
        cuts=tuple(message.cuts),
        contexts=contexts,
        salt=message.salt,
        percent=message.percent,
        rule_based_percent=message.rule_based_percent,
        holdback_percent=message.holdback_percent,
        holdback_salt=message.holdback_salt,
        arms=tuple(message.arms),
        checksum=checksum,
    )


def _contexts(message: policy_pb2.PolicySnapshot) -> dict[tuple[str, str, str], Context]:
    numbers = [
        (content, mood, time)
        for content in message.content_types
        for mood in message.moods
        for time in message.times_of_day
    ]
    found = {}
    for index, (content, mood, time) in enumerate(numbers):
        try:
            names = CONTENT_TYPES[content], MOODS[mood], TIMES_OF_DAY[time]
        except KeyError:
            raise SnapshotError("it knows contexts that this client does not") from None
        found[names] = Context(index, (content, mood, time))
    if not found or len(found) != len(numbers) or types_pb2.MOOD_UNSPECIFIED in message.moods:
        raise SnapshotError("its contexts are no table's")
    return found


def _check(message: policy_pb2.PolicySnapshot, n_contexts: int) -> None:
    if not 1 <= message.bins <= 100:
        raise SnapshotError(f"it has {message.bins} bins")
    cuts = list(message.cuts)
    if cuts and not (
        len(cuts) == message.bins - 1
        and cuts == sorted(set(cuts))
        and 0 < cuts[0] <= cuts[-1] < 100
    ):
        raise SnapshotError(f"it cuts {message.bins} bins at {cuts}")
    if not message.arms:
        raise SnapshotError("it serves nobody")
    n_states = message.bins**5 * n_contexts
    known = set(pb.DecisionSource.values()) - {0, pb.DECISION_SOURCE_EXPLORATION}
    for arm in message.arms:
        if not (0.0 < arm.share <= 1.0 and 0.0 <= arm.epsilon <= 1.0):
            raise SnapshotError("a share or an epsilon is out of range")
        if not arm.actions and not arm.sources:
            continue
        if len(arm.actions) != n_states or len(arm.sources) != n_states:
            raise SnapshotError(f"an arm has {len(arm.actions)} states, not {n_states}")
        if max(arm.actions) >= N_ACTIONS or not known.issuperset(arm.sources):
            raise SnapshotError("an arm has actions or sources that do not exist")
        if arm.HasField("draws"):
            _check_draws(arm.draws, message.bins**5, n_contexts)


def _check_draws(draws: policy_pb2.Draws, n_cells: int, n_contexts: int) -> None:
    if not (1 <= draws.n <= 255 and 1 <= draws.bins <= 100):
        raise SnapshotError("draws are out of range")
    own = draws.bins**5
    if len(draws.cells) != n_cells or not all(0 <= cell < own for cell in draws.cells):
        raise SnapshotError("draws are of cells that do not exist")
    if len(draws.counts) != own * n_contexts or max(draws.counts) > draws.n:
        raise SnapshotError(f"draws are of {len(draws.counts)} states, not {own * n_contexts}")
    if len(draws.actions) != sum(draws.counts) or max(draws.actions, default=0) >= N_ACTIONS:
        raise SnapshotError("draws have other actions than they count")
