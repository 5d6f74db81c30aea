"""What was served at earlier times, for checking decisions that callers made by it."""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from recparams_rl.arms import RULES_VERSION
from recparams_rl.exploration import Exploration
from recparams_rl.policy import Policy
from recparams_server.contract.errors import Violations
from recparams_server.contract.vocabulary import Contexts
from recparams_server.serving.delegated_decisions import DelegatedDecision, ServedPlan, problem
from recparams_server.serving.delegated_tokens import Told
from recparams_server.serving.policies import PolicyHolder
from recparams_server.store.activations import fetch_activation
from recparams_server.store.database import Pool
from recparams_server.store.model_errors import UnservableModelError
from recparams_server.store.models import load_policy
from recparams_server.turns import in_turns

MOST_PLANS = 4
"""Kept of those lately asked for. A table takes two bytes a state."""


def told_to_callers(exploration: Exploration, holder: PolicyHolder) -> Told:
    """Returns the exploration that this server tells callers.

    Args:
        exploration: how it explores.
        holder: holds the policies in memory.
    """
    current = exploration.beside(holder.serving.version)
    if current.epsilon is None:
        current = replace(current, epsilon=holder.serving.exploration)
    return Told.of(current, holder.rules)


class ServedPlans:
    """Activations with their policies: what is served, and what was lately asked for.

    Args:
        holder: holds the policies in memory.
        exploration: how the server explores.
    """

    def __init__(self, holder: PolicyHolder, exploration: Exploration) -> None:
        self._holder = holder
        self._exploration = exploration
        self._plans: OrderedDict[int, ServedPlan] = OrderedDict()
        self._loading = asyncio.Lock()

    async def check(
        self,
        pool: Pool,
        decisions: Iterable[DelegatedDecision],
        contexts: Contexts,
        violations: Violations,
    ) -> None:
        """Notes decisions that what was served cannot have led to.

        Args:
            pool: where activations and policies that are not in memory are read.
            decisions: the decisions.
            contexts: the contexts of this deployment.
            violations: takes note of them.
        """
        told = told_to_callers(self._exploration, self._holder)
        # One activation after the other, so that no more of them are in memory than are kept.
        for number, group in groupby(sorted(decisions, key=_activation), key=_activation):
            served = await self._plan(pool, number)
            async for one in in_turns(group):
                if served is None:
                    violations.add(one.path, f"names activation {number}, which there never was")
                elif found := problem(served, self._holder.space, contexts, one, told):
                    violations.add(one.path, found)

    async def _plan(self, pool: Pool, number: int) -> ServedPlan | None:
        """Returns an activation with its policies; None if there is no such activation."""
        if number in self._plans:
            self._plans.move_to_end(number)
            return self._plans[number]
        async with self._loading:
            if number not in self._plans:
                served = await self._load(pool, number)
                if served is None:
                    return None
                self._plans[number] = served
                if len(self._plans) > MOST_PLANS:
                    self._plans.popitem(last=False)
            return self._plans[number]

    async def _load(self, pool: Pool, number: int) -> ServedPlan | None:
        serving = self._holder.serving
        policies: dict[int, Policy] = {RULES_VERSION: self._holder.rules}
        for plan in self._plans.values():
            policies |= plan.policies
        policies |= {arm.version: arm.policy for arm in serving.arms}
        activation = serving.plan
        if activation.id != number:
            async with pool.acquire() as connection:
                activation = await fetch_activation(connection, number)
        if activation.id != number:
            return None
        versions = {arm.version for arm in activation.arms().values()}
        for version in sorted(versions - policies.keys()):
            with contextlib.suppress(LookupError, UnservableModelError):
                async with pool.acquire() as connection:
                    policies[version] = await load_policy(connection, version, self._holder.space)
        return ServedPlan(activation, {one: policies[one] for one in versions & policies.keys()})


def _activation(one: DelegatedDecision) -> int:
    return one.decision.activation
