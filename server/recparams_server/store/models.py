"""Model versions: their tables, their policies and the watermarks of their training."""

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION, Activation
from recparams_rl.draws import Draws
from recparams_rl.learners.registry import POLICIES
from recparams_rl.packing import pack, unpack
from recparams_rl.policy import GreedyTable, Policy
from recparams_rl.state import TRAITS, StateSpace
from recparams_rl.transitions import TrainedThrough
from recparams_server.contract.sizes import LARGEST_NUMBER
from recparams_server.store.database import Connection
from recparams_server.store.model_errors import (
    ActivationNumberError,
    CorruptModelError,
    IncompatibleModelError,
    MissingModelError,
    ModelError,
    NoTableError,
)

TABLE_COMPRESSION_LEVEL = 1
"""Of tables, which are mostly zeros, higher levels make nothing smaller."""
COMPRESSION_LEVEL = 3
"""Of policies, 9 makes a tenth less in four times the time."""


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


def encode(model: NewModel, table: bytes | None = None) -> EncodedModel:
    """Returns a version compressed and with checksums. Slow; needs no database.

    Args:
        model: the version.
        table: what `compressed_table` returns of its table, if that was called before.
    """
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    if table is None:
        table = compressed_table(model.q, model.visits, model.rewards)
    learner = None
    if model.learner:
        learner = compressor.compress(pack(model.learner))
    policy = compressor.compress(_policy_bytes(model.policy))
    serving = model.policy.space
    space = canonical(
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


def compressed_table(
    q: NDArray[np.float32] | None,
    visits: NDArray[np.int32] | None,
    rewards: NDArray[np.float32] | None,
) -> bytes | None:
    """Returns the arrays of a table one after the other, compressed without a copy of them.

    None if there is none of them, as of a learner that keeps no table.
    """
    arrays = [one for one in (q, visits, rewards) if one is not None]
    if len(arrays) < 3:
        return None
    compressor = zstandard.ZstdCompressor(level=TABLE_COMPRESSION_LEVEL)
    stream = compressor.compressobj(size=sum(one.nbytes for one in arrays))
    pieces = [stream.compress(np.ascontiguousarray(one).data.cast("B")) for one in arrays]
    return b"".join((*pieces, stream.flush()))


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


async def load_policy(connection: Connection, version: int, space: StateSpace | None) -> Policy:
    """The policy of a version, checked.

    Args:
        connection: where to read.
        version: which.
        space: the state space of serving; refuses a version built for another one, None takes any.

    Raises:
        MissingModelError: there is no such version.
        CorruptModelError: its row is damaged.
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
        raise MissingModelError(f"there is no model version {version}")
    return await asyncio.to_thread(_decoded_policy, version, row, space)


def _decoded_policy(version: int, row: Any, space: StateSpace | None) -> Policy:
    """Returns the policy in a row of `load_policy`, in a thread: it takes milliseconds a MB."""
    with _decoding(version):
        if version > LARGEST_NUMBER:
            raise ValueError(f"decision tokens have room for versions up to {LARGEST_NUMBER}")
        stored, own = _checked_space(version, row["space"], space, serving=True)
        if checksum(canonical(stored), row["policy"]) != row["policy_checksum"]:
            raise ValueError("the policy fails its checksum")
        epsilon = float(row["epsilon"])
        if row["policy_kind"] == GreedyTable.kind:
            return _greedy_table(own, decompress_any(row["policy"]), epsilon)
        kind = POLICIES.get(row["policy_kind"])
        if kind is None:
            raise ValueError(f"this server knows no policy of the kind {row['policy_kind']}")
        policy = kind.from_arrays(own, epsilon, unpack(decompress_any(row["policy"])))
        _check_probabilities(policy)
        return policy


def _check_probabilities(policy: Policy) -> None:
    """Raises ValueError unless a policy has an answer for a person."""
    state, traits = np.zeros(1, dtype=np.int32), np.full((1, len(TRAITS)), 50.0)
    found = policy.action_dist(state, traits)
    if found.shape != (1, N_ACTIONS) or not np.isclose(found.sum(), 1.0, atol=1e-3):
        raise ValueError("the policy gives no probabilities of the actions")


async def load_plan(
    connection: Connection,
    plan: Activation,
    space: StateSpace,
    loaded: Mapping[int, Policy] | None = None,
) -> dict[int, Policy]:
    """Loads the policies that an activation serves, by version; the rules need no loading.

    Those in `loaded` were loaded before, for the same space.

    Raises as `load_policy` if the plan cannot be served, and ActivationNumberError.
    """
    if plan.id > LARGEST_NUMBER:
        raise ActivationNumberError(
            f"activation {plan.id}: decision tokens have room for activations up to "
            f"{LARGEST_NUMBER}"
        )
    versions = {arm.version for arm in plan.arms().values()} - {RULES_VERSION}
    policies = dict(loaded or {})
    for version in sorted(versions - policies.keys()):
        policies[version] = await load_policy(connection, version, space)
    return {version: policies[version] for version in sorted(versions)}


def _policy_bytes(policy: Policy) -> bytes:
    # Tables of bytes as they are: they are most of what is loaded, and the fastest.
    if isinstance(policy, GreedyTable):
        draws = b"" if policy.draws is None else pack(policy.draws.arrays())
        return policy.actions + policy.sources + draws
    return pack(policy.arrays())


def _greedy_table(space: StateSpace, data: bytes, epsilon: float) -> GreedyTable:
    n = space.n_states
    draws = Draws.from_arrays(space, unpack(data[2 * n :])) if len(data) > 2 * n else None
    return GreedyTable(space, data[:n], data[n : 2 * n], epsilon, draws)


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
    """The table of a version, checked, as writable arrays. Arguments and errors as `load_policy`.

    Raises NoTableError as well, for a version without one.
    """
    row = await connection.fetchrow(
        """
        SELECT space::text, hyperparameters::text, q_table, q_table_checksum
        FROM model_versions WHERE version = $1
        """,
        version,
    )
    if row is None:
        raise MissingModelError(f"there is no model version {version}")
    with _decoding(version):
        stored, own = _checked_space(version, row["space"], space)
        if row["q_table"] is None:
            raise NoTableError(f"model version {version} has no table: its algorithm keeps none")
        if checksum(canonical(stored), row["q_table"]) != row["q_table_checksum"]:
            raise ValueError("the table fails its checksum")
        shape = own.n_states, N_ACTIONS
        size = 4 * shape[0] * shape[1]
        data = _decompress(row["q_table"], 3 * size)
        q, visits, rewards = (data[place : place + size] for place in range(0, 3 * size, size))
        return StoredTable(
            own,
            np.frombuffer(q, dtype=np.float32).reshape(shape).copy(),
            np.frombuffer(visits, dtype=np.int32).reshape(shape).copy(),
            np.frombuffer(rewards, dtype=np.float32).reshape(shape).copy(),
            dict(json.loads(row["hyperparameters"])),
        )


async def load_trained(connection: Connection, version: int) -> TrainedThrough | None:
    """Whose interactions a version was trained on; None where nobody knows.

    The rules, version 0, were trained on nothing. Raises MissingModelError and CorruptModelError.
    """
    if version == RULES_VERSION:
        return TrainedThrough.nothing()
    row = await connection.fetchrow(
        "SELECT trained_through FROM model_versions WHERE version = $1", version
    )
    if row is None:
        raise MissingModelError(f"there is no model version {version}")
    if row["trained_through"] is None:
        return None
    with _decoding(version):
        stream = zstandard.ZstdDecompressor().decompressobj()
        return TrainedThrough.from_bytes(stream.decompress(row["trained_through"]))


def canonical(space: Any) -> str:
    """Returns a space as the text that checksums are over."""
    return json.dumps(space, sort_keys=True)


def checksum(space: str, blob: bytes) -> str:
    """Returns the checksum of a blob of a version with a space, in hexadecimal."""
    return hashlib.sha256(space.encode() + blob).hexdigest()


@contextlib.contextmanager
def _decoding(version: int) -> Iterator[None]:
    """Turns whatever the decoding of a damaged row raises into CorruptModelError."""
    try:
        yield
    except ModelError:
        raise
    except Exception as failure:
        plain = isinstance(failure, ValueError | zstandard.ZstdError)
        said = f"{failure}" if plain else f"{type(failure).__name__}: {failure}"
        raise CorruptModelError(f"model version {version}: {said}") from None


def _checked_space(
    version: int, text: str, wanted: StateSpace | None, *, serving: bool = False
) -> tuple[dict[str, Any], StateSpace]:
    """Returns what is stored of a version's spaces, and that of learning or of serving."""
    data: dict[str, Any] = json.loads(text)
    try:
        stored = StateSpace.from_dict(data)
        if serving:
            bins = {"bins": data["serving_bins"], "cuts": data["serving_cuts"]}
            stored = StateSpace.from_dict(data | bins)
    except (KeyError, TypeError, ValueError) as failure:
        raise ValueError(f"bad state space: {failure}") from None
    if wanted is not None and stored != wanted:
        mine, theirs = wanted.to_dict(), stored.to_dict()
        differing = ", ".join(key for key in mine if mine[key] != theirs[key])
        raise IncompatibleModelError(
            f"model version {version} was built for another state space ({differing} differ)"
        )
    return data, stored


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
        raise MissingModelError(f"there is no model version {version}")
    arrays: dict[str, NDArray[Any]] = {}
    with _decoding(version):
        stored, _ = _checked_space(version, row["space"], space)
        if row["learner"] is not None:
            if checksum(canonical(stored), row["learner"]) != row["learner_checksum"]:
                raise ValueError("the learner fails its checksum")
            arrays = unpack(decompress_any(row["learner"]))
    if row["has_table"]:
        table = await load_table(connection, version, space)
        arrays |= {"q": table.q, "visits": table.visits, "rewards": table.rewards}
    return row["algorithm"], arrays


def decompress_any(blob: bytes) -> bytes:
    """Returns the content of a blob of any size. Raises ZstdError."""
    return zstandard.ZstdDecompressor().decompress(blob)


def _decompress(blob: bytes, size: int) -> bytes:
    data = zstandard.ZstdDecompressor().decompress(blob, max_output_size=size)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes, not {size}")
    return data
