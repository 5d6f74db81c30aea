"""The demo: simulated weeks of use of a running server, and its policy after each of them.

Policies are measured on held-out people, whom the server has never seen: the learned one, the rules
and a random one in the same situations. Nothing held-out people do is recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from recparams.v1 import models_pb2, recommendation_pb2_grpc, training_pb2
from recparams.v1.models_pb2_grpc import ModelServiceStub
from recparams.v1.training_pb2_grpc import TrainingServiceStub
from recparams_client.channel import ADMIN_KEY_HEADER
from recparams_rl.action import N_ACTIONS
from recparams_rl.reward import RewardWeights, reaction_flags
from recparams_rl.rules import rule_table
from recparams_rl.state import StateSpace
from recparams_simulation.crowd import (
    BACKENDS,
    Crowd,
    VisitTotals,
    greedy_actions,
    play_visits,
    put_profiles,
)
from recparams_simulation.people.population import (
    WEEK,
    Ints,
    Situations,
    draw_population,
    draw_visits,
)
from recparams_simulation.people.simulator import expected_rewards, react
from recparams_simulation.people.traits import Floats

if TYPE_CHECKING:
    from recparams.v1.models_pb2_grpc import ModelServiceAsyncStub
    from recparams.v1.training_pb2_grpc import TrainingServiceAsyncStub

HELD_OUT_PEOPLE = 800
WINDOW_DAYS = 28
"""People who came too seldom in one week are trained with what they did in later ones."""

SECONDS = 30.0


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Plan:
    """Size of the simulation: people, weeks, and the seed of both.

    Where it is to be repeated, calls come in the same order each time, which takes longer.
    """

    people: int
    weeks: int
    seed: int
    repeatable: bool = False


@dataclass(frozen=True)
class PolicyPerformance:
    """Exact mean reward of a policy on held-out people, and the like rate of one draw."""

    reward: float
    like_rate: float


@dataclass(frozen=True)
class Week:
    """One simulated week and the policies after training on it. Week 0 is before everything.

    Attributes:
        number: 0 to the number of weeks.
        recorded: totals of the visits that were recorded.
        learned, rules, random, optimum: the policies on the held-out people.
        gain: mean over held-out people of the learned policy's reward above the rules'.
        gain_error: half the width of its 95 % interval.
        states: states with at least one update.
        rollout: what becomes of the week's version; empty if it is served to everybody at once.
    """

    number: int
    recorded: VisitTotals
    learned: PolicyPerformance
    rules: PolicyPerformance
    random: PolicyPerformance
    optimum: PolicyPerformance
    gain: float
    gain_error: float
    states: int
    rollout: str


Report = Callable[[str, float], None]
"""Called with the name of the step under way and its progress, 0 to 1."""


class HeldOut:
    """People and situations that are never recorded, the same for every policy and week."""

    def __init__(self, rng: np.random.Generator, weights: RewardWeights, start: int) -> None:
        population = draw_population(rng, HELD_OUT_PEOPLE)
        self.crowd = Crowd("held-out", population, weights)
        self.at: Situations = draw_visits(rng, population, np.arange(HELD_OUT_PEOPLE), start)
        self._expected = expected_rewards(population, self.at, weights)
        self._seed = int(rng.integers(2**63))
        space = StateSpace()
        state = space.index_columns(
            population.traits[self.at.person],
            self.at.content_type,
            self.at.mood,
            self.at.time_of_day,
        )
        self.rules: Ints = rule_table(space)[state].astype(np.int64)
        self.random: Ints = rng.integers(0, N_ACTIONS, size=len(self.at))
        self.optimum: Ints = self._expected.argmax(axis=1)

    def measure(self, actions: Ints) -> PolicyPerformance:
        """Returns the performance of actions, shape (m,), one for each held-out situation."""
        rng = np.random.default_rng(self._seed)
        did = react(rng, self.crowd.population, self.at, actions)
        return PolicyPerformance(
            float(self._rewards(actions).mean()),
            float(reaction_flags(did.mask, "like").mean()),
        )

    def gain(self, actions: Ints) -> tuple[float, float]:
        """Returns the mean gain of people over the rules, and half its 95 % interval."""
        above = self._rewards(actions) - self._rewards(self.rules)
        visits = np.bincount(self.at.person, minlength=HELD_OUT_PEOPLE)
        total = np.bincount(self.at.person, weights=above, minlength=HELD_OUT_PEOPLE)
        each = total[visits > 0] / visits[visits > 0]
        return float(each.mean()), float(1.96 * each.std(ddof=1) / np.sqrt(len(each)))

    def _rewards(self, actions: Ints) -> Floats:
        chosen: Floats = self._expected[np.arange(len(actions)), actions]
        return chosen


async def simulate_weeks(
    address: str, admin_key: str, plan: Plan, report: Report
) -> AsyncIterator[Week]:
    """Simulates the weeks that end now and trains after each; yields each week when it is done.

    Args:
        address: host:port of a server without interactions, which explores.
        admin_key: its admin key.
        plan: size of the simulation.
        report: called with the progress.

    Raises:
        DemoError: if a training run did not complete.
        grpc.aio.AioRpcError: if a call failed.
    """
    rng = np.random.default_rng(plan.seed)
    weights = RewardWeights()
    # The same days of the week and hours whenever it runs.
    end = int(time.time()) // WEEK * WEEK
    crowd = Crowd("person", draw_population(rng, plan.people), weights)
    held_out = HeldOut(rng, weights, end - WEEK)
    rules, random, optimum = map(
        held_out.measure, (held_out.rules, held_out.random, held_out.optimum)
    )
    people: Ints = np.arange(plan.people)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = recommendation_pb2_grpc.RecommendationServiceStub(channel)
        operator = _Operator(
            TrainingServiceStub(channel),
            ModelServiceStub(channel),
            ((ADMIN_KEY_HEADER, admin_key),),
        )
        report("storing profiles", 0.0)
        await put_profiles(stub, crowd)
        recorded, states, rollout = VisitTotals(0, 0.0, 0, frozenset()), 0, ""
        for number in range(plan.weeks + 1):
            if number > 0:
                start = end - (plan.weeks - number + 1) * WEEK
                visits = draw_visits(rng, crowd.population, people, start)
                progress = _Progress(len(visits), report, f"week {number}: people use the service")
                recorded = await play_visits(
                    stub,
                    crowd,
                    visits,
                    rng,
                    until=start + WEEK,
                    backends=1 if plan.repeatable else BACKENDS,
                    on_visits=progress.add,
                )
                run = await operator.train(f"demo-week-{number}", start + WEEK, number, report)
                states = run.statistics.total_states
                rollout = "" if run.served_percent == 100 else run.outcome_reason
            report(f"week {number}: asking for people it has not seen", 0.0)
            actions = await greedy_actions(stub, held_out.crowd, held_out.at)
            gain, gain_error = held_out.gain(actions)
            yield Week(
                number=number,
                recorded=recorded,
                learned=held_out.measure(actions),
                rules=rules,
                random=random,
                optimum=optimum,
                gain=gain,
                gain_error=gain_error,
                states=states,
                rollout=rollout,
            )
            people = np.setdiff1d(people, list(recorded.leavers))


@dataclass(frozen=True)
class _Operator:
    """Operator of the server, who trains it."""

    training: TrainingServiceAsyncStub
    models: ModelServiceAsyncStub
    metadata: tuple[tuple[str, str], ...]

    async def train(
        self, request_id: str, as_of: int, week: int, report: Report
    ) -> training_pb2.TrainingRun:
        """Trains to the end and waits until the new version is served. Raises DemoError."""
        started = await self.training.TriggerTraining(
            training_pb2.TriggerTrainingRequest(
                request_id=request_id,
                days_back=WINDOW_DAYS,
                as_of=Timestamp(seconds=as_of),
                hyperparameters=training_pb2.Hyperparameters(settling_seconds=0.0),
            ),
            metadata=self.metadata,
            timeout=SECONDS,
        )
        run = started.run
        request = training_pb2.WatchTrainingRunRequest(run_id=run.run_id)
        async for update in self.training.WatchTrainingRun(request, metadata=self.metadata):
            run = update.run
            report(f"week {week}: training, {run.stage}", run.progress)
        if run.status != training_pb2.TRAINING_RUN_STATUS_COMPLETED:
            raise DemoError(f"training run {run.run_id} did not complete: {run.error or 'stopped'}")
        if not run.model_version:
            raise DemoError("there was nothing to learn from: more --people are needed")
        if not run.served_percent:
            return run
        try:
            async with asyncio.timeout(SECONDS):
                while await self._serving() != run.model_version:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise DemoError(f"version {run.model_version} is not served") from None
        return run

    async def _serving(self) -> int:
        answer = await self.models.ListModels(
            models_pb2.ListModelsRequest(page_size=1), metadata=self.metadata, timeout=SECONDS
        )
        return answer.serving_version


class _Progress:
    """Counts towards a total and reports the share."""

    def __init__(self, total: int, report: Report, what: str) -> None:
        self._done, self._total, self._report, self._what = 0, total, report, what
        report(what, 0.0)

    def add(self, count: int) -> None:
        """Adds to the number done and reports the share."""
        self._done += count
        self._report(self._what, self._done / self._total)
