"""RolloutService: shares of the people, comparison of the arms, and shadowing."""

from datetime import UTC, datetime
from typing import Any

from recparams.v1 import rollout_pb2 as pb
from recparams.v1 import rollout_pb2_grpc as grpc_pb
from recparams.v1 import training_pb2
from recparams_rl.arms import NEVER_ACTIVATED, RULES_VERSION, Activation
from recparams_server.contract.errors import Violations, not_found
from recparams_server.contract.vocabulary import ARM_NUMBERS
from recparams_server.jobs.processes import run_for
from recparams_server.jobs.requests import ACTIVE, EvaluationRequest
from recparams_server.services.conversion import stamp
from recparams_server.services.runtime import Runtime
from recparams_server.services.versions import (
    check_evaluated,
    check_plan,
    check_reason,
    check_servable,
    refused,
)
from recparams_server.settings import Settings
from recparams_server.store import activations, shadows, tasks
from recparams_server.store.database import Connection

MOST_HISTORY = 20
NEXT = "next"


class RolloutService(grpc_pb.RolloutServiceServicer):
    """Serves RolloutService. Rollouts are rows: the database tells every replica of them."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime

    async def SetRollout(
        self, request: pb.SetRolloutRequest, context: Any
    ) -> pb.SetRolloutResponse:
        check_reason(request.reason)
        pool = self._runtime.require_pool()
        async with pool.acquire() as connection, connection.transaction():
            current = await activations.lock(connection)
            version = request.version if request.HasField("version") else current.version
            if version == RULES_VERSION:
                raise refused("NO_ROLLOUT", "the rules are served to everybody: name a version")
            percent, rules = self._shares(request, current, version)
            await check_servable(self._runtime, connection, version)
            following = await activations.set_rollout(
                connection,
                version,
                activations.Shares(percent, rules, self._settings.holdback_percent),
                request.reason,
            )
            await check_plan(self._runtime, connection, following)
            if version != current.version:
                await tasks.supersede_waiting(connection)
            (rollout,) = await self._newest(connection, 1)
        return pb.SetRolloutResponse(rollout=rollout)

    def _shares(
        self, request: pb.SetRolloutRequest, current: Activation, version: int
    ) -> tuple[float, float]:
        """Returns the version's and the rules' share of the people. Raises INVALID_ARGUMENT."""
        violations = Violations()
        steps = self._settings.steps()
        before = current.split.percent if version == current.version else 0.0
        rules = current.split.rule_based_percent
        if request.HasField("rule_based_percent"):
            rules = request.rule_based_percent
            _check_percent(rules, "rule_based_percent", violations)
        percent = before if version == current.version else next(iter(steps.values()))
        kind = request.WhichOneof("target")
        if kind == "percent":
            percent = request.percent
            _check_percent(percent, "percent", violations)
        elif kind == "step" and request.step == NEXT:
            percent = next((step for step in steps.values() if step > before), 100.0)
        elif kind == "step" and request.step in steps:
            percent = steps[request.step]
        elif kind == "step":
            known = ", ".join([*steps, NEXT])
            violations.add("step", f"there is no step {request.step[:40]!r}: {known}")
        if kind != "percent":
            percent = min(percent, 100.0 - rules)
        if not violations and percent + rules > 100.0:
            violations.add("percent", f"{percent:g} and {rules:g} on the rules exceed 100")
        violations.raise_any()
        return percent, rules

    async def _newest(self, connection: Connection, size: int) -> list[pb.Rollout]:
        """Returns the current rollout, and up to size - 1 earlier ones, newest first."""
        rollouts = []
        for activation, row in await activations.history(connection, size):
            message = self._message(activation)
            message.changed_at.FromDatetime(row["activated_at"])
            message.reason = row["reason"]
            message.automatic = row["automatic"]
            rollouts.append(message)
        rollouts = rollouts or [self._message(NEVER_ACTIVATED)]
        shadow = await shadows.current(connection)
        rollouts[0].shadow_version = shadow.version if shadow else 0
        waiting = await tasks.waiting_version(connection)
        rollouts[0].waiting_version = waiting["version"] if waiting else 0
        return rollouts

    def _message(self, activation: Activation) -> pb.Rollout:
        split = activation.split
        return pb.Rollout(
            version=activation.version,
            baseline_version=activation.baseline,
            percent=split.percent,
            rule_based_percent=split.rule_based_percent,
            holdback_percent=split.holdback_percent,
            experiment_id=activation.experiment_id or 0,
            arms=[
                pb.ArmShare(arm=ARM_NUMBERS[name], version=arm.version, percent=100.0 * arm.share)
                for name, arm in activation.arms().items()
            ],
            steps=[
                pb.RolloutStep(name=name, percent=percent)
                for name, percent in self._settings.steps().items()
            ],
        )

    async def GetRollout(
        self, request: pb.GetRolloutRequest, context: Any
    ) -> pb.GetRolloutResponse:
        async with self._runtime.require_pool().acquire() as connection:
            rollout, *history = await self._newest(connection, MOST_HISTORY + 1)
        return pb.GetRolloutResponse(rollout=rollout, history=history)

    async def GetExperiment(
        self, request: pb.GetExperimentRequest, context: Any
    ) -> pb.GetExperimentResponse:
        async with self._runtime.require_pool().acquire() as connection:
            number = request.experiment_id or await activations.newest_experiment(connection)
            if not number:
                raise not_found("experiment: nothing was ever rolled out to a share of the people")
            times = await activations.experiment_times(connection, number)
        if times["started_at"] is None:
            raise not_found(f"experiment {number}")
        response = await run_for(
            self._runtime.require_jobs(), pb.GetExperimentResponse, "experiment", str(number)
        )
        response.started_at.FromDatetime(times["started_at"])
        if times["ended_at"] is not None:
            response.ended_at.FromDatetime(times["ended_at"])
        return response

    async def SetShadow(self, request: pb.SetShadowRequest, context: Any) -> pb.SetShadowResponse:
        violations = Violations()
        if not request.HasField("version") or request.version < 0:
            violations.add("version", "is required; 0 stops shadowing")
        violations.raise_any()
        pool = self._runtime.require_pool()
        async with pool.acquire() as connection, connection.transaction():
            await check_servable(self._runtime, connection, request.version)
            await shadows.start(connection, request.version)
        return pb.SetShadowResponse(shadow_version=request.version)

    async def GetShadow(self, request: pb.GetShadowRequest, context: Any) -> pb.GetShadowResponse:
        async with self._runtime.require_pool().acquire() as connection:
            shadow = await shadows.current(connection)
        if shadow is None or not shadow.version:
            raise not_found("version in shadow mode")
        policies = (shadow.version, ACTIVE)
        await check_evaluated(self._runtime, policies)
        wanted = EvaluationRequest(shadow.since, datetime.now(UTC), policies, by_segment=False)
        found = await run_for(
            self._runtime.require_jobs(),
            training_pb2.EvaluateResponse,
            "evaluate",
            wanted.to_json(),
        )
        return pb.GetShadowResponse(
            version=shadow.version,
            since=stamp(shadow.since),
            decisions=shadow.decisions,
            agreements=shadow.agreements,
            policies=found.policies,
            differences=found.differences,
        )


def _check_percent(value: float, name: str, violations: Violations) -> None:
    if not 0.0 <= value <= 100.0:
        violations.add(name, f"must be from 0 to 100, not {value:g}")
