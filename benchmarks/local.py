"""Decisions in the caller's process against calls of the server, by the client library."""

import gc
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.database import make_database, postgres
from benchmarks.measure import Effort, cores, side_by_side
from benchmarks.report import Goal, Section, Table
from benchmarks.servers import running, scores
from recparams_client import DecisionRequest, LocalPolicy, PersonalityProfile, RecParamsClient
from recparams_client.deciding import Decider
from recparams_client.snapshot import decode
from recparams_rl.arms import NEVER_ACTIVATED
from recparams_rl.exploration import SCHEDULE
from recparams_rl.policy import GreedyTable, rule_based_policy
from recparams_rl.state import StateSpace
from recparams_server.serving import snapshots
from recparams_server.serving.policies import Arm, Serving

CALL, BATCH, DECIDE, TOKEN = "call", "batch of 64", "decide", "get_recommendation_params"


def run(effort: Effort, folder: Path) -> Section:
    """One thread of a backend, on one core; the server on the other."""
    serving, _ = cores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        database = make_database(stack.enter_context(postgres()), "local", 0)
        port, _ = stack.enter_context(running("real", serving, database, scratch))
        address = f"127.0.0.1:{port}"
        remote = stack.enter_context(RecParamsClient(address, decision_timeout=10))
        local = stack.enter_context(LocalPolicy(address))
        if not local.wait(30):
            raise RuntimeError(local.problem)
        requests = [_request(person) for person in range(64)]
        spent = side_by_side(
            {
                CALL: partial(_all, remote.get_recommendation_params, requests),
                BATCH: partial(remote.batch_get_recommendation_params, requests),
                DECIDE: partial(_all, local.decide, requests),
                TOKEN: partial(_all, local.get_recommendation_params, requests),
            },
            rounds=effort.of(9, 1),
            calls=effort.of(10, 1),
        )
    each = {name: seconds / len(requests) for name, seconds in spent.items()}
    rows = [
        (
            name,
            f"{1e6 * each[name]:,.2f}",
            f"{1 / each[name]:,.0f}",
            f"{each[CALL] / each[name]:,.1f}",
        )
        for name in each
    ]
    sent, kept = _memory()
    return Section(
        "Decisions in the caller's process",
        [
            "One thread that waits for each answer, the server on the other core. *call* and "
            "*batch of 64* are `RecParamsClient`; *decide* is `LocalPolicy.decide`, without a "
            "token, and *get_recommendation_params* is the same with one. Requests are dataclasses "
            "with names and scores, checked as the server checks them; exploration is on.",
            Table(("", "µs a decision", "decisions/s", "of calls"), rows),
            f"A policy of 300,000 states is {sent / 1000:,.0f} kB under way (the rules; a learned "
            f"one is some tens of kB) and {kept / 1e6:.1f} MB in memory. What is left of *decide* "
            "is Python: five comparisons, five divisions, some lookups and the answer's object.",
        ],
        goals=[
            Goal(
                what="decision in the caller's process, without its token",
                reference="a call, one at a time",
                ratio=each[CALL] / each[DECIDE],
                hold=1000,
                shortfall=f"{1e6 * each[DECIDE]:.1f} µs of Python against "
                f"{1e6 * each[CALL]:,.0f} µs of gRPC",
            )
        ],
    )


def _request(person: int) -> DecisionRequest:
    return DecisionRequest(
        f"person-{person:08d}",
        ("music", "video", "game")[person % 3],
        ("calm", "happy", "sad", "neutral")[person % 4],
        ("morning", "evening", "night")[person % 3],
        personality=PersonalityProfile(*scores(person)),
    )


def _all(decide: Callable[[DecisionRequest], object], requests: list[DecisionRequest]) -> None:
    for one in requests:
        decide(one)


def _memory() -> tuple[int, int]:
    """Bytes of a policy of every state under way, and in the client's memory."""
    space = StateSpace()
    rules = rule_based_policy(space, 0.05)
    policy = GreedyTable(space, rules.actions, rules.sources, 0.05)
    serving = Serving((Arm("rl", 1, policy, 1.0),), NEVER_ACTIVATED, 0)
    encoded = snapshots.encode(space, serving, SCHEDULE)
    gc.collect()
    tracemalloc.start()
    decider = Decider(decode(encoded.compressed, encoded.checksum), lambda: None)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del decider
    return len(encoded.compressed), kept
