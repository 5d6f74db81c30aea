"""What must not have happened, looked up in the database once all is quiet."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import numpy as np

from benchmarks.soak import probe
from benchmarks.soak.ledger import DECISIONS, OK, WITHOUT_PROFILE, Answer, Ledger
from benchmarks.soak.replicas import EXPLORATION
from recparams.v1 import recommendation_pb2 as pb
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import RULES_VERSION
from recparams_rl.policy import SOURCES, propensity, rule_based_policy
from recparams_rl.state import StateSpace
from recparams_server.contract.vocabulary import SOURCE_NUMBERS
from recparams_server.store import models, training
from recparams_server.store.columns import INTERACTIONS, Rows, StateEncoder, copy_rows

EXPLORED = "exploration"
_SOURCES = dict(zip(SOURCES, SOURCE_NUMBERS, strict=True))


@dataclass(frozen=True)
class Finding:
    """Something that must be 0.

    Attributes:
        what: for people.
        of: how many things were looked at.
        found: how many were wrong, by kind or example.
    """

    what: str
    of: int
    found: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many were wrong."""
        return self.found.total()


async def acknowledged(
    db: asyncpg.Connection, acknowledged: Mapping[str, Answer | None]
) -> list[Finding]:
    """Acknowledged interactions that are missing, there twice, or stored with another decision."""
    rows = await db.fetch("SELECT interaction_id, action, model_version, source FROM interactions")
    stored = {row["interaction_id"]: tuple(row)[1:] for row in rows}
    lost = Counter(name for name in acknowledged if name not in stored)
    twice = Counter({"rows too many": len(rows) - len(stored)})
    changed: Counter[str] = Counter()
    for name, answer in acknowledged.items():
        if answer is not None and name in stored:
            said = (answer.named, answer.version, _SOURCES[answer.source])
            changed[name] += stored[name] != said
    of = len(acknowledged)
    return [
        Finding("acknowledged interactions lost", of, lost),
        Finding("interactions stored twice", len(rows), +twice),
        Finding("acknowledged interactions stored with another decision", of, +changed),
    ]


async def trained(db: asyncpg.Connection, space: StateSpace) -> list[Finding]:
    """Interactions that the newest table has counted more than once, or not at all.

    For each state and action the table's visits are held to the number of stored interactions.
    """
    expected = np.zeros((space.n_states, N_ACTIONS), dtype=np.int64)
    encode = StateEncoder(space)
    unknown = total = 0

    async def count(rows: Rows) -> None:
        nonlocal unknown, total
        state = encode(rows)
        known = state >= 0
        np.add.at(expected, (state[known], rows["action"][known].astype(np.int64)), 1)
        unknown += int((~known).sum())
        total += len(rows)

    await copy_rows(db, f"SELECT {INTERACTIONS.select_list} FROM interactions AS i", on_rows=count)
    version = await training.base_version(db)
    if version is None:
        visits = np.zeros_like(expected)
    else:
        visits = (await models.load_table(db, version, space)).visits.astype(np.int64)
    more = visits - expected
    twice = Counter({"of some state and action": int(more.clip(min=0).sum())})
    never = Counter({"of some state and action": int((-more).clip(min=0).sum())})
    never["without a profile"] = unknown
    return [
        Finding("interactions trained twice", total, +twice),
        Finding("interactions never trained", total, +never),
    ]


async def wrong_answers(
    db: asyncpg.Connection, answers: Sequence[Answer], space: StateSpace
) -> Finding:
    """Answers that the version they name would not give, or whose version was never served."""
    activated = await db.fetch("SELECT DISTINCT coalesce(version, 0) FROM model_activations")
    policies: dict[int, Any] = {RULES_VERSION: rule_based_policy(space, EXPLORATION)}
    for (version,) in activated:
        if version != RULES_VERSION:
            policies[version] = await models.load_policy(db, version, space)
    found: Counter[str] = Counter()
    for answer in answers:
        found[_wrong(answer, policies)] += 1
    del found[""]
    return Finding("answers that their version would not give", len(answers), found)


def _wrong(answer: Answer, policies: Mapping[int, Any]) -> str:
    """What is wrong with an answer; empty where nothing is. Policies are greedy tables."""
    if answer.action != answer.named:
        return "parameters of another action than the one named"
    if answer.reason in WITHOUT_PROFILE:
        if answer.reason == "no_profile":
            return "a stored profile was not found"
        if (answer.version, answer.named) != (RULES_VERSION, answer.neutral):
            return "another action than the rules' without a profile"
        return ""
    policy = policies.get(answer.version)
    if policy is None:
        return f"version {answer.version} was never served"
    if answer.reason != ("no_model" if answer.version == RULES_VERSION else ""):
        return f"reason {answer.reason!r} of version {answer.version}"
    greedy = policy.actions[answer.state] == answer.named
    if greedy == (answer.source == EXPLORED):
        return f"another action than version {answer.version}'s"
    if greedy and answer.source != SOURCES[policy.sources[answer.state]]:
        return f"another source than version {answer.version}'s"
    if abs(answer.propensity - propensity(EXPLORATION, greedy=greedy)) > 1e-9:
        return "another propensity than the exploration's"
    return ""


async def disagreeing(
    db: asyncpg.Connection,
    addresses: Sequence[str],
    requests: Sequence[pb.GetRecommendationParamsRequest],
    space: StateSpace,
) -> Finding:
    """Decisions of each server that the version to serve would not give, once all is quiet."""
    active = await db.fetchval(
        "SELECT coalesce(version, 0) FROM model_activations ORDER BY id DESC LIMIT 1"
    )
    given = await asyncio.gather(*(probe.decisions(one, requests) for one in addresses))
    found: Counter[str] = Counter()
    for address, responses in zip(addresses, given, strict=True):
        for one in responses:
            found[f"{address} serves {one.model_version}, not {active}"] += (
                one.model_version != active
            )
    greedy = [
        {(one.action.SerializeToString(deterministic=True)) for one in same if not _explored(one)}
        for same in zip(*given, strict=True)
    ]
    found["the same request, another action"] = sum(len(actions) > 1 for actions in greedy)
    return Finding(
        "servers that disagree once all is quiet", len(requests) * len(addresses), +found
    )


def _explored(response: pb.GetRecommendationParamsResponse) -> bool:
    return response.source == pb.DECISION_SOURCE_EXPLORATION


def failed_decisions(ledger: Ledger) -> Finding:
    """Decisions that failed while every server could be reached."""
    found: Counter[str] = Counter()
    decided = 0
    for phase in ledger.phases:
        if not phase.spares_servers:
            continue
        for (what, outcome), count in phase.calls.items():
            if what in DECISIONS:
                decided += count
                found[f"{phase.fault}: {outcome}"] += count if outcome != OK else 0
    return Finding("decisions that failed while every server could be reached", decided, +found)


def recoveries(ledger: Ledger) -> Finding:
    """Faults after which something did not work again in time."""
    faults = [phase for phase in ledger.phases if phase.lifted]
    found = Counter(f"{one.fault}: {one.note}" for one in faults if not one.recovered)
    return Finding("faults that were not recovered from", len(faults), found)
