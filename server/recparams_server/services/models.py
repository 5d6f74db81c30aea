"""ModelService: listing, activating, exporting and importing model versions."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from recparams.v1 import models_pb2 as pb
from recparams.v1 import models_pb2_grpc as grpc_pb
from recparams_rl.arms import Activation
from recparams_server.contract.errors import (
    LONGEST_DESCRIPTION,
    ServiceError,
    Violations,
    invalid,
    not_found,
)
from recparams_server.contract.sizes import LARGEST_CHUNK
from recparams_server.jobs.processes import INVALID_FILE, run_for
from recparams_server.jobs.requests import DifferenceRequest
from recparams_server.services.conversion import model_message, page_bounds
from recparams_server.services.model_states import set_state
from recparams_server.services.runtime import Runtime
from recparams_server.services.training_requests import MOST_DAYS, bounded
from recparams_server.services.versions import (
    check_evaluated,
    check_plan,
    check_reason,
    check_servable,
    refused,
)
from recparams_server.settings import Settings
from recparams_server.store import activations, deletion, model_rows, tasks
from recparams_server.store.database import Connection

LARGEST_FILE = 1024 * 1024 * 1024
DIFF_DAYS = 7
MOST_KEPT = 1_000_000


class ModelService(grpc_pb.ModelServiceServicer):
    """Serves ModelService. Activations are rows: the database tells every replica of them."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Any
    ) -> pb.ListModelsResponse:
        size, below = page_bounds(request.page_size, request.page_token)
        async with self._runtime.require_pool().acquire() as connection:
            active = await activations.current_activation(connection)
            rows = await model_rows.page(connection, below, size + 1)
            messages = await _messages(connection, rows[:size], active)
        return pb.ListModelsResponse(
            models=messages,
            next_page_token=str(rows[size - 1]["version"]) if len(rows) > size else "",
            active_version=active.version,
            serving_version=self._runtime.holder.serving.version,
        )

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        async with self._runtime.require_pool().acquire() as connection:
            version = await _version_or_active(connection, request.version)
            return pb.GetModelResponse(model=await _model(connection, version))

    async def ActivateModel(
        self, request: pb.ActivateModelRequest, context: Any
    ) -> pb.ActivateModelResponse:
        if not request.HasField("version") or request.version < 0:
            raise invalid("version", "is required; 0 serves the rules")
        check_reason(request.reason)
        pool = self._runtime.require_pool()
        async with pool.acquire() as connection, connection.transaction():
            await check_servable(self._runtime, connection, request.version)
            following, previous = await activations.activate(
                connection, request.version, self._settings.holdback_percent, request.reason
            )
            await check_plan(self._runtime, connection, following)
            await tasks.supersede_waiting(connection)
        return pb.ActivateModelResponse(active_version=request.version, previous_version=previous)

    async def RollbackModel(
        self, request: pb.RollbackModelRequest, context: Any
    ) -> pb.RollbackModelResponse:
        check_reason(request.reason)
        pool = self._runtime.require_pool()
        async with pool.acquire() as connection, connection.transaction():
            rolled = await activations.rollback(connection, request.reason or "rollback")
            if rolled is None:
                raise refused("NOTHING_TO_ROLL_BACK", "no version was served before this one")
            following, previous = rolled
            await tasks.supersede_waiting(connection)
            await check_plan(self._runtime, connection, following)
        return pb.RollbackModelResponse(active_version=following.version, previous_version=previous)

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Any
    ) -> AsyncIterator[pb.ExportModelResponse]:
        async with self._runtime.require_pool().acquire() as connection:
            version = await _version_or_active(connection, request.version)
            row = await model_rows.describe(connection, version)
        if row is None:
            raise _no_model(version)
        if not row["has_table"]:
            raise refused(
                "NO_TABLE", f"version {version} has no table: {row['algorithm']} keeps none"
            )
        async for piece in self._runtime.require_jobs().stream("export", str(version)):
            yield pb.ExportModelResponse(chunk=piece)

    async def ImportModel(
        self, request: AsyncIterator[pb.ImportModelRequest], context: Any
    ) -> pb.ImportModelResponse:
        pool = self._runtime.require_pool()
        upload = _Upload(request)
        code, output = await self._runtime.require_jobs().feed(upload.pieces(), "import")
        if code == INVALID_FILE:
            # It quotes the file, and clients refuse an answer whose metadata are too large.
            raise invalid("chunk", output.decode()[:LONGEST_DESCRIPTION])
        if code != 0:
            raise RuntimeError(f"the import exited with code {code}")
        version = int(output)
        async with pool.acquire() as connection, connection.transaction():
            if upload.activate:
                await check_servable(self._runtime, connection, version)
                holdback = self._settings.holdback_percent
                following, _ = await activations.activate(connection, version, holdback, "import")
                await check_plan(self._runtime, connection, following)
                await tasks.supersede_waiting(connection)
            return pb.ImportModelResponse(model=await _model(connection, version))

    async def DiffModels(
        self, request: pb.DiffModelsRequest, context: Any
    ) -> pb.DiffModelsResponse:
        violations = Violations()
        for name in ("version", "other_version"):
            if not request.HasField(name) or getattr(request, name) < 0:
                violations.add(name, "is required; 0 is the rules")
        days = bounded(request, "days", DIFF_DAYS, MOST_DAYS, violations)
        violations.raise_any()
        end = datetime.now(UTC)
        start = end - timedelta(days=days or DIFF_DAYS)
        wanted = DifferenceRequest(start, end, request.version, request.other_version)
        await check_evaluated(self._runtime, (request.version, request.other_version))
        return await run_for(
            self._runtime.require_jobs(), pb.DiffModelsResponse, "diff", wanted.to_json()
        )

    async def DeleteModels(
        self, request: pb.DeleteModelsRequest, context: Any
    ) -> pb.DeleteModelsResponse:
        violations = Violations()
        keep = bounded(request, "keep_newest", None, MOST_KEPT, violations)
        if (keep is None) == (not request.versions):
            violations.add("versions", "or keep_newest is required, and not both")
        violations.raise_any()
        pool = self._runtime.require_pool()
        async with pool.acquire() as connection, connection.transaction():
            kept = await deletion.in_use(connection, await activations.lock(connection))
            if keep is None:
                sizes = await deletion.stored(connection, request.versions)
                for version in request.versions:
                    if version not in sizes:
                        raise _no_model(version)
                    if version in kept:
                        raise refused("MODEL_IN_USE", f"version {version} {kept[version]}")
            else:
                found = await deletion.beyond(connection, keep)
                sizes = {v: size for v, size in found.items() if v not in kept}
            if not request.dry_run:
                await deletion.delete(connection, list(sizes))
        return pb.DeleteModelsResponse(versions=sorted(sizes), stored_bytes=sum(sizes.values()))


class _Upload:
    """A file that a caller sends in pieces."""

    def __init__(self, requests: AsyncIterator[pb.ImportModelRequest]) -> None:
        self._requests = requests
        self.activate = False

    async def pieces(self) -> AsyncIterator[bytes]:
        size = 0
        async for request in self._requests:
            if size == 0:
                self.activate = request.activate
            size += len(request.chunk)
            if len(request.chunk) > LARGEST_CHUNK or size > LARGEST_FILE:
                raise invalid("chunk", "must be up to 1 MiB, and 1 GiB in all")
            yield request.chunk


async def _version_or_active(connection: Connection, version: int) -> int:
    return version or (await activations.current_activation(connection)).version


def _no_model(version: int) -> ServiceError:
    return not_found(f"model version {version}" if version else "active model version")


async def _model(connection: Connection, version: int) -> pb.Model:
    row = await model_rows.describe(connection, version)
    if row is None:
        raise _no_model(version)
    active = await activations.current_activation(connection)
    (message,) = await _messages(connection, [row], active)
    return message


async def _messages(connection: Connection, rows: list[Any], active: Activation) -> list[pb.Model]:
    """Returns the messages of rows of `model_rows`, each version read whole."""
    pasts = await model_rows.pasts(connection, [row["version"] for row in rows])
    messages = []
    for row in rows:
        problem = await model_rows.problem(connection, row)
        message = model_message(row, active.version, problem)
        set_state(message, active, pasts[row["version"]])
        messages.append(message)
    return messages
