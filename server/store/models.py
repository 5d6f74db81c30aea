"""Model versions: their tables, their policies and the watermarks of their training."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import zstandard
from numpy.typing import NDArray

from rl.action import N_ACTIONS
from rl.arms import RULES_VERSION, Activation
from rl.learners.registry import POLICIES
from rl.packing import pack, unpack
from rl.policy import GreedyTable, Policy
from rl.state import StateSpace
from rl.transitions import TrainedThrough
from server.store.database import Connection, Pool

COMPRESSION_LEVEL = 3


class UnservableModelError(Exception):
    """A stored version that no server here can serve; the message says why.

    Attributes:
        reason: the same for programs.
    """

    reason: ClassVar[str]


class CorruptModelError(UnservableModelError):
    """A stored version that fails its checksum or shape. The message says which."""

    reason = "MODEL_CORRUPT"


class NoTableError(Exception):
    """A stored version that has no table. The message says which."""


class IncompatibleModelError(UnservableModelError):
    """A stored version built for another state space. The message says how it differs."""

    reason = "MODEL_INCOMPATIBLE"


@dataclass(frozen=True)
class NewModel:
    """A version to store.

    Attributes:
        space: the state space of learning.
        q, visits, rewards: its table, each of shape (n_states, n_actions), or None if its learner
            keeps none.
        learner: the other arrays of its learner, for training to go on from.
        objectives: the weights of its reward.
        main_line: True if later incremental runs build on it.
        trained: the interactions it was trained on, or None if unknown.
    """

    origin: str
    run_id: int | None
    parent_version: int | None
    algorithm: str
    space: StateSpace
    hyperparameters: dict[str, Any]
    metrics: dict[str, Any]
    q: NDArray[np.float32] | None
    visits: NDArray[np.int32] | None
    rewards: NDArray[np.float32] | None
    policy: Policy
    objectives: dict[str, float]
    main_line: bool
    trained: TrainedThrough | None
    learner: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodedModel:
    """A version as the columns of its row."""

    values: tuple[object, ...]


def encode(model: NewModel) -> EncodedModel:
    """Returns a version compressed and with checksums. Slow; needs no database."""
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    table = learner = None
    if model.q is not None and model.visits is not None and model.rewards is not None:
        table = compressor.compress(
            model.q.tobytes() + model.visits.tobytes() + model.rewards.tobytes()
        )
    if model.learner:
        learner = compressor.compress(pack(model.learner))
    policy = compressor.compress(_policy_bytes(model.policy))
    serving = model.policy.space
    space = _canonical(
        model.space.to_dict() | {"serving_bins": serving.bins, "serving_cuts": serving.cuts}
    )
    return EncodedModel(
        (
            model.origin,
            model.run_id,
            model.parent_version,
            model.algorithm,
            space,
            json.dumps(model.hyperparameters),
            json.dumps(model.metrics),
            table,
            None if table is None else checksum(space, table),
            policy,
            checksum(space, policy),
            json.dumps(model.objectives),
            model.main_line,
            None if model.trained is None else compressor.compress(model.trained.to_bytes()),
            model.policy.kind,
            learner,
            None if learner is None else checksum(space, learner),
        )
    )


async def insert(connection: Connection, model: EncodedModel) -> int:
    """Stores a version and returns its number."""
    return int(
        await connection.fetchval(
            """
            INSERT INTO model_versions (
                origin, run_id, parent_version, algorithm, space, hyperparameters, metrics,
                q_table, q_table_checksum, policy, policy_checksum, objectives, main_line,
                trained_through, policy_kind, learner, learner_checksum
            ) VALUES (
                $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17
            )
            RETURNING version
            """,
            *model.values,
        )
    )


async def load_policy(connection: Connection, version: int, space: StateSpace) -> Policy:
    """The policy of a version, checked.

    Args:
        connection: where to read.
        version: which.
        space: the state space of serving.

    Raises:
        LookupError: there is no such version.
        CorruptModelError: its checksum or shape is wrong.
        IncompatibleModelError: it was built for another state space.
    """
    row = await connection.fetchrow(
        """
        SELECT space::text, metrics->>'exploration_rate' AS epsilon,
            policy, policy_checksum, policy_kind
        FROM model_versions WHERE version = $1
        """,
        version,
    )
    if row is None:
        raise LookupError(f"there is no model version {version}")
    stored = _checked_space(version, row["space"], space, serving=True)
    if checksum(_canonical(stored), row["policy"]) != row["policy_checksum"]:
        raise CorruptModelError(f"model version {version}: the policy fails its checksum")
    try:
        epsilon = float(row["epsilon"])
        if row["policy_kind"] == GreedyTable.kind:
            data = _decompress(version, row["policy"], 2 * space.n_states)
            return GreedyTable(space, data[: space.n_states], data[space.n_states :], epsilon)
        kind = POLICIES.get(row["policy_kind"])
        if kind is None:
            raise ValueError(f"this server knows no policy of the kind {row['policy_kind']}")
        return kind.from_arrays(space, epsilon, unpack(decompress_any(version, row["policy"])))
    except (TypeError, ValueError, KeyError) as failure:
        raise CorruptModelError(f"model version {version}: {failure}") from None


async def load_plan(
    connection: Connection, plan: Activation, space: StateSpace
) -> dict[int, Policy]:
    """Loads the policies that an activation serves, by version; the rules need no loading.

    Raises as `load_policy` if the plan cannot be served.
    """
    versions = {arm.version for arm in plan.arms().values()} - {RULES_VERSION}
    return {version: await load_policy(connection, version, space) for version in sorted(versions)}


def _policy_bytes(policy: Policy) -> bytes:
    # Tables of bytes as they are: they are most of what is loaded, and the fastest.
    if isinstance(policy, GreedyTable):
        return policy.actions + policy.sources
    return pack(policy.arrays())


@dataclass(frozen=True)
class StoredTable:
    """The table of a version: what learning goes on from."""

    space: StateSpace
    q: NDArray[np.float32]
    visits: NDArray[np.int32]
    rewards: NDArray[np.float32]
    hyperparameters: dict[str, Any]


async def load_table(
    connection: Connection, version: int, space: StateSpace | None = None
) -> StoredTable:
    """The table of a version, checked, as writable arrays. Raises as `load_policy`.

    Args:
        connection: where to read.
        version: which.
        space: refuses a version built for another one; None takes any.
    """
    row = await connection.fetchrow(
        """
        SELECT space::text, hyperparameters::text, q_table, q_table_checksum
        FROM model_versions WHERE version = $1
        """,
        version,
    )
    if row is None:
        raise LookupError(f"there is no model version {version}")
    stored = _checked_space(version, row["space"], space)
    if row["q_table"] is None:
        raise NoTableError(f"model version {version} has no table: its algorithm keeps none")
    if checksum(_canonical(stored), row["q_table"]) != row["q_table_checksum"]:
        raise CorruptModelError(f"model version {version}: the table fails its checksum")
    shape = StateSpace.from_dict(stored).n_states, N_ACTIONS
    size = 4 * shape[0] * shape[1]
    data = _decompress(version, row["q_table"], 3 * size)
    q, visits, rewards = (data[place : place + size] for place in range(0, 3 * size, size))
    return StoredTable(
        StateSpace.from_dict(stored),
        np.frombuffer(q, dtype=np.float32).reshape(shape).copy(),
        np.frombuffer(visits, dtype=np.int32).reshape(shape).copy(),
        np.frombuffer(rewards, dtype=np.float32).reshape(shape).copy(),
        json.loads(row["hyperparameters"]),
    )


async def load_trained(connection: Connection, version: int) -> TrainedThrough | None:
    """Whose interactions a version was trained on; None where nobody knows.

    The rules, version 0, were trained on nothing. Raises LookupError where there is no such
    version.
    """
    if version == RULES_VERSION:
        return TrainedThrough.nothing()
    row = await connection.fetchrow(
        "SELECT trained_through FROM model_versions WHERE version = $1", version
    )
    if row is None:
        raise LookupError(f"there is no model version {version}")
    if row["trained_through"] is None:
        return None
    stream = zstandard.ZstdDecompressor().decompressobj()
    return TrainedThrough.from_bytes(stream.decompress(row["trained_through"]))


def _canonical(space: dict[str, Any]) -> str:
    return json.dumps(space, sort_keys=True)


def checksum(space: str, blob: bytes) -> str:
    return hashlib.sha256(space.encode() + blob).hexdigest()


def _checked_space(
    version: int, text: str, wanted: StateSpace | None, *, serving: bool = False
) -> dict[str, Any]:
    """Returns what is stored of a version's spaces, if that of learning or of serving is wanted."""
    try:
        data: dict[str, Any] = json.loads(text)
        stored = StateSpace.from_dict(data)
        if serving:
            bins = {"bins": data["serving_bins"], "cuts": data["serving_cuts"]}
            stored = StateSpace.from_dict(data | bins)
    except (KeyError, TypeError, ValueError) as failure:
        raise CorruptModelError(f"model version {version}: bad state space: {failure}") from None
    if wanted is not None and stored != wanted:
        mine, theirs = wanted.to_dict(), stored.to_dict()
        differing = ", ".join(key for key in mine if mine[key] != theirs[key])
        raise IncompatibleModelError(
            f"model version {version} was built for another state space ({differing} differ)"
        )
    return data


async def any_needs_traits(connection: Connection) -> bool:
    """Returns True if the policy of a stored version needs scores, and not states alone."""
    kinds = [kind for kind, policy in POLICIES.items() if policy.needs_traits]
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM model_versions WHERE policy_kind = ANY($1))", kinds
        )
    )


async def load_learner(
    connection: Connection, version: int, space: StateSpace
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Algorithm and arrays of a version's learner, to go on from. Raises as `load_policy`."""
    row = await connection.fetchrow(
        """
        SELECT space::text, algorithm, q_table IS NOT NULL AS has_table, learner, learner_checksum
        FROM model_versions WHERE version = $1
        """,
        version,
    )
    if row is None:
        raise LookupError(f"there is no model version {version}")
    stored = _checked_space(version, row["space"], space)
    arrays: dict[str, NDArray[Any]] = {}
    if row["learner"] is not None:
        if checksum(_canonical(stored), row["learner"]) != row["learner_checksum"]:
            raise CorruptModelError(f"model version {version}: the learner fails its checksum")
        try:
            arrays = unpack(decompress_any(version, row["learner"]))
        except ValueError as failure:
            raise CorruptModelError(f"model version {version}: {failure}") from None
    if row["has_table"]:
        table = await load_table(connection, version, space)
        arrays |= {"q": table.q, "visits": table.visits, "rewards": table.rewards}
    return row["algorithm"], arrays


def decompress_any(version: int, blob: bytes) -> bytes:
    """Returns the content of a checked blob of any size. Raises CorruptModelError."""
    try:
        return zstandard.ZstdDecompressor().decompress(blob)
    except zstandard.ZstdError as failure:
        raise CorruptModelError(f"model version {version}: {failure}") from None


def _decompress(version: int, blob: bytes, size: int) -> bytes:
    try:
        data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size)
    except zstandard.ZstdError as failure:
        raise CorruptModelError(f"model version {version}: {failure}") from None
    if len(data) != size:
        raise CorruptModelError(f"model version {version}: {len(data)} bytes, not {size}")
    return data


_DESCRIBE = """
SELECT version, created_at, origin, run_id, parent_version, algorithm, space::text,
    hyperparameters::text, metrics::text,
    coalesce(q_table_checksum, learner_checksum) AS checksum,
    coalesce(octet_length(q_table), 0) + coalesce(octet_length(learner), 0)
        + octet_length(policy) AS stored_bytes,
    objectives::text, main_line, halted_at, halted_reason, q_table IS NOT NULL AS has_table
FROM model_versions
"""


async def describe(connection: Connection | Pool, version: int) -> Any:
    """Returns the row of a version without its arrays, or None."""
    return await connection.fetchrow(_DESCRIBE + "WHERE version = $1", version)


async def page(connection: Connection, below: int | None, size: int) -> list[Any]:
    """Returns the rows of up to `size` versions, newest first, below a version number."""
    return await connection.fetch(
        _DESCRIBE + "WHERE $1::bigint IS NULL OR version < $1 ORDER BY version DESC LIMIT $2",
        below,
        size,
    )


async def metrics(connection: Connection, version: int) -> dict[str, Any]:
    """Returns the statistics of a version. Raises LookupError if there is no such version."""
    text = await connection.fetchval(
        "SELECT metrics::text FROM model_versions WHERE version = $1", version
    )
    if text is None:
        raise LookupError(f"there is no model version {version}")
    found: dict[str, Any] = json.loads(text)
    return found


async def least_exploration(connection: Connection) -> float | None:
    """Returns the least exploration rate above 0 of the stored versions; None if none explores."""
    least: float | None = await connection.fetchval(
        """
        SELECT min(epsilon)
        FROM (SELECT (metrics->>'exploration_rate')::float8 AS epsilon FROM model_versions) AS each
        WHERE epsilon > 0
        """
    )
    return least


async def halt(connection: Connection, version: int, reason: str) -> None:
    """Marks a version as one that the server took back by itself."""
    await connection.execute(
        "UPDATE model_versions SET halted_at = now(), halted_reason = $2 WHERE version = $1",
        version,
        reason,
    )
