"""Decisions in the caller's process: the same as the server's, over a real channel."""

import asyncio
import base64
import hashlib
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recparams.v1 import policy_pb2 as pb
from recparams.v1 import policy_pb2_grpc
from recparams.v1 import recommendation_pb2 as rpb
from recparams.v1 import types_pb2 as types
from recparams_client import (
    DecisionRequest,
    Interaction,
    LocalPolicy,
    PersonalityProfile,
    RecommendationParams,
    RecParamsClient,
    RecParamsError,
    deciding,
    sealing,
)
from recparams_client.deciding import Decider
from recparams_client.sealing import SealingKey, pack, seal
from recparams_client.snapshot import SnapshotError, decode, position_of
from recparams_rl.action import N_ACTIONS
from recparams_rl.arms import PREVIOUS, RL, RULE_BASED, Activation, Split
from recparams_rl.exploration import OFF, Exploration
from recparams_rl.learners.features import n_features
from recparams_rl.learners.lin_ts import SampledLinearPolicy
from recparams_rl.policy import GreedyTable
from recparams_rl.state import MOODS, StateSpace
from recparams_server.app import App
from recparams_server.observability import metrics
from recparams_server.serving import snapshots
from recparams_server.serving.delegated_tokens import Told
from recparams_server.serving.policies import Arm, Serving
from recparams_server.serving.tokens import InvalidTokenError, TokenCodec
from recparams_server.settings import Settings
from tests.local_policy_vectors import Chances
from tests.processes import run
from tests.support import ROOT, Client, connect, in_process, wait_serving

# A server in the same process draws by `random` while hypothesis draws examples.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

KNOWN_MOODS = tuple(mood for mood in MOODS if mood != "stressed")
SPACE = StateSpace(bins=3, moods=KNOWN_MOODS)
ADA = PersonalityProfile(75, 60, 40, 80, 30)
ASKED = DecisionRequest("ada", "music", "calm", "evening", personality=ADA)
HEARTBEAT = 0.2
PATIENCE = 60.0
"""Seconds for what takes a moment, on a machine many times slower than ours."""


@pytest.fixture
def settings(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    return in_process(
        database_url,
        tmp_path,
        bins=3,
        moods=KNOWN_MOODS,
        exploration="schedule",
        watch_heartbeat_seconds=HEARTBEAT,
        **getattr(request, "param", {}),
    )


def table(seed: int, epsilon: float = 0.0) -> GreedyTable:
    """Any action, by any source, in every state."""
    generator = np.random.default_rng(seed)
    actions, sources = (generator.integers(top, size=SPACE.n_states) for top in (N_ACTIONS, 3))
    columns = actions.astype(np.uint8).tobytes(), sources.astype(np.uint8).tobytes()
    return GreedyTable(SPACE, *columns, epsilon)


def serve(app: App, number: int, *arms: Arm, split: Split | None = None) -> None:
    """Serves arms, as if they had been activated, until the next activation."""
    plan = Activation(number, arms[0].version, None, split or Split(), 0, None)
    app._holder.serve(Serving(arms, plan, app._holder.serving.activation))


def one_arm(app: App, version: int = 7, epsilon: float = 0.0) -> None:
    serve(app, version, Arm(RL, version, table(version, epsilon), 1.0))


def three_arms(app: App, epsilon: float = 0.0) -> None:
    split = Split(30, 20, "pepper", 10)
    shares = split.shares()
    rules = replace(app._holder.rules, epsilon=epsilon)
    serve(
        app,
        5,
        Arm(RL, 8, table(8, epsilon), shares[RL]),
        Arm(PREVIOUS, 7, table(7), shares[PREVIOUS]),
        Arm(RULE_BASED, 0, rules, shares[RULE_BASED]),
        split=split,
    )


def rules_alone(app: App) -> None:
    serve(app, 0, Arm(RULE_BASED, 0, replace(app._holder.rules, epsilon=0.0), 1.0))


async def following(app: App, until: Callable[[LocalPolicy], bool] = bool) -> LocalPolicy:
    local = LocalPolicy(f"127.0.0.1:{app.port}", decision_timeout=PATIENCE)
    assert await asyncio.to_thread(local.wait, PATIENCE)
    await becomes(lambda: until(local))
    return local


async def becomes(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


scores = st.one_of(
    st.floats(0, 100),
    st.sampled_from([0.0, 100.0, 100 / 3, 200 / 3, 33.333332, 66.66666, 59.99999999, -0.0]),
)
wrong_scores = st.sampled_from([-1e-9, 100.00001, float("nan"), float("inf"), 1e39, -5.0])
zones = st.integers(-15 * 60, 15 * 60).map(lambda m: timezone(timedelta(minutes=m)))
times = st.one_of(
    st.fixed_dictionaries(
        {"time_of_day": st.sampled_from(["morning", "afternoon", "evening", "night"])}
    ),
    st.fixed_dictionaries(
        {
            "timestamp": st.datetimes(
                datetime(1969, 12, 30),
                datetime(9999, 12, 28),
                timezones=zones,
            )
        }
    ),
)
personalities = st.one_of(
    st.none(),
    st.builds(PersonalityProfile, *[scores] * 5),
    st.builds(PersonalityProfile, *[st.one_of(scores, wrong_scores)] * 5),
)
requests = st.builds(
    lambda user_id, content_type, mood, personality, when: DecisionRequest(
        user_id, content_type, mood, personality=personality, **when
    ),
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128),
        st.sampled_from(["", "nul\0", "x" * 128, "x" * 129, "é" * 128]),
    ),
    st.sampled_from(["music", "video", "game", "book"]),
    st.sampled_from([*MOODS, "bored"]),
    personalities,
    times,
)


def outcome(decide: Callable[[DecisionRequest], Any], one: DecisionRequest) -> Any:
    """What a caller sees but for the token, errors included."""
    try:
        found = vars(decide(one))
    except ValueError as raised:
        return "ValueError", str(raised)
    except RecParamsError as raised:
        return raised.code, raised.message, raised.violations
    assert found["decision_token"]
    return {**found, "decision_token": b""}


@pytest.mark.parametrize("arrange", [one_arm, three_arms, rules_alone])
@pytest.mark.usefixtures("client")
async def test_every_answer_is_the_servers(app: App, arrange: Callable[[App], None]) -> None:
    arrange(app)
    plan = app._holder.serving.plan.id
    local = await following(app, lambda one: one._decider.snapshot.activation == plan)  # type: ignore[union-attr]
    with RecParamsClient(f"127.0.0.1:{app.port}", decision_timeout=10) as remote, local:

        @hypothesis_settings(
            max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(requests)
        def alike(one: DecisionRequest) -> None:
            here = outcome(local.get_recommendation_params, one)
            assert here == outcome(remote.get_recommendation_params, one)

        await asyncio.to_thread(alike)


@pytest.mark.parametrize("arrange", [one_arm, three_arms])
@pytest.mark.usefixtures("client")
async def test_every_state_has_the_servers_answer(app: App, arrange: Callable[[App], None]) -> None:
    arrange(app)
    decider = app._runtime.require_decider()
    local = await following(app, lambda one: one.model_version == app._holder.serving.version)
    with local:
        for state in range(SPACE.n_states):
            bins, context = SPACE.decode(state)
            personality = PersonalityProfile(*((one + 0.5) * 100 / 3 for one in bins))
            words = context.content_type, context.mood, context.time_of_day
            user = f"person-{state % 50}"
            here = local.decide(DecisionRequest(user, *words, personality=personality))
            _, _, _, context_, _, _, source, _, _ = here._made
            numbers = context_.numbers
            there = rpb.GetRecommendationParamsResponse.FromString(
                decider.decide(user.encode(), tuple(vars(personality).values()), numbers)
            )
            assert here.recommendation.propensity == there.propensity
            assert here.recommendation.model_version == there.model_version
            assert source == there.source
            params = {name: getattr(there.params, name) for name in PARAMS}
            assert vars(here.recommendation.params) == pytest.approx(params)


PARAMS = RecommendationParams.__dataclass_fields__


@pytest.mark.parametrize("arrange", [one_arm, three_arms])
@pytest.mark.usefixtures("client")
async def test_it_explores_as_the_server_does(app: App, arrange: Callable[..., None]) -> None:
    arrange(app, epsilon=0.5)
    local = await following(app, lambda one: one.model_version == app._holder.serving.version)
    with local, RecParamsClient(f"127.0.0.1:{app.port}", decision_timeout=10) as remote:
        one = next(
            DecisionRequest(user, "music", "calm", "evening", personality=ADA)
            for user in map(str, range(100))
            if app._holder.serving.arm_of(user).name == RL
        )
        many = [one] * 250
        there = [
            answer
            for _ in range(8)
            for answer in await asyncio.to_thread(remote.batch_get_recommendation_params, many)
        ]
        here = [local.get_recommendation_params(one) for _ in range(len(there))]
    known = {(a.energy, a.diversity, a.novelty): (a.propensity, a.source) for a in there}
    counts = Counter((a.energy, a.diversity, a.novelty) for a in here)
    assert len(counts) == len(known) == N_ACTIONS
    for answer in here:
        propensity, source = known[answer.energy, answer.diversity, answer.novelty]
        assert (answer.propensity, answer.source) == (propensity, source)
    greedy = max(known, key=lambda action: known[action][1] != "exploration")
    assert 0.45 < counts[greedy] / len(here) < 0.6


async def test_reactions_to_local_decisions_are_recorded(
    app: App, client: Client, db: asyncpg.Connection
) -> None:
    one_arm(app, epsilon=0.3)
    local = await following(app, lambda one: one.model_version == 7)
    with local, RecParamsClient(f"127.0.0.1:{app.port}") as remote:
        made = local.get_recommendation_params(ASKED)
        unknown = local.get_recommendation_params(
            DecisionRequest("bob", "game", time_of_day="night")
        )
        reactions = [
            Interaction("ada", made.decision_token, ("like",)),
            Interaction("bob", unknown.decision_token, ("skip",)),
        ]
        stored = await asyncio.to_thread(remote.record_interactions, reactions)
        assert stored.recorded == 2
        with pytest.raises(RecParamsError, match="not issued by this service for this user_id"):
            wrong = [Interaction("eve", made.decision_token, ("like",))]
            await asyncio.to_thread(remote.record_interactions, wrong)
    rows = await db.fetch("SELECT * FROM interactions ORDER BY reactions")
    ada = next(row for row in rows if row["openness"] is not None)
    assert ada["propensity"] == pytest.approx(made.propensity)
    assert (ada["model_version"], ada["activation_id"], ada["action"]) == (7, 7, ada["action"])
    assert [ada[name] for name in vars(ADA)] == list(vars(ADA).values())
    assert sum(row["propensity"] is None for row in rows) == 1


FIELDS: dict[str, Any] = {
    "model_version": 3,
    "propensity": 0.5,
    "context": (1, 2, 3),
    "action": 4,
    "arm": 1,
    "source": 1,
    "scores": (1.0, 2.0, 3.0, 4.0, 5.0),
    "activation": 9,
}


def sealed(codec: TokenCodec, decided_at: int, issued: int, **changes: Any) -> bytes:
    key = codec.delegate(issued, Told(0.3, everywhere=False))
    record = pack(decided_at, **{**FIELDS, **changes})
    return seal(SealingKey(key.id, key.key, key.expires_at), "zoë".encode(), record)


def test_sealed_tokens_say_what_was_sealed() -> None:
    codec, now = TokenCodec(b"key"), int(time.time())
    token = sealed(codec, 1000 * now, now)
    assert len(token) < 120
    for reader in (codec, TokenCodec(b"newer", [b"key"])):
        found = reader.read(token, "zoë")
        assert found.decided_at == 1000 * now
        assert (found.content_type, found.mood, found.time_of_day) == FIELDS["context"]
        assert found.traits == FIELDS["scores"]
        for name in ("model_version", "propensity", "action", "arm", "source", "activation"):
            assert getattr(found, name) == FIELDS[name]
    assert b"zo" not in token and bytes(8) not in token


@given(st.integers(0, 86), st.integers(1, 255))
def test_a_changed_token_is_refused(place: int, flip: int) -> None:
    codec, now = TokenCodec(b"key"), int(time.time())
    token = bytearray(sealed(codec, 1000 * now, now))
    token[place] ^= flip
    with pytest.raises(InvalidTokenError):
        codec.read(bytes(token), "zoë")


@pytest.mark.parametrize(
    "changes",
    [
        {"propensity": 0.0},
        {"propensity": 1.5},
        {"propensity": float("nan")},
        {"context": (0, 2, 3)},
        {"context": (1, 99, 3)},
        {"context": (1, 2, 9)},
        {"action": 27},
        {"arm": 0},
        {"source": 77},
        {"scores": (1.0, 2.0, float("nan"), 4.0, 5.0)},
        {"scores": (1.0, 2.0, 3.0, 4.0, 101.0)},
    ],
)
def test_a_key_does_not_let_its_holder_say_nonsense(changes: dict[str, Any]) -> None:
    codec, now = TokenCodec(b"key"), int(time.time())
    with pytest.raises(InvalidTokenError, match="no decision can be"):
        codec.read(sealed(codec, 1000 * now, now, **changes), "zoë")


def test_a_key_speaks_for_its_lifetime_only() -> None:
    codec, now = TokenCodec(b"key"), int(time.time())
    for issued in (now - 3 * 86400, now + 3600):
        with pytest.raises(InvalidTokenError, match="lifetime"):
            codec.read(sealed(codec, 1000 * now, issued), "zoë")
    with pytest.raises(InvalidTokenError, match="not issued"):
        TokenCodec(b"other").read(sealed(codec, 1000 * now, now), "zoë")


@pytest.mark.usefixtures("client")
async def test_changes_arrive_and_many_watchers_cost_one_encoding(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    encodings = Counter[int]()
    encode = snapshots.encode

    def counted(space: StateSpace, serving: Serving, exploration: Exploration) -> Any:
        encodings[serving.plan.id] += 1
        return encode(space, serving, exploration)

    monkeypatch.setattr(snapshots, "encode", counted)
    one_arm(app, 1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}") as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
        calls = [stub.WatchPolicy(pb.WatchPolicyRequest()) for _ in range(300)]
        first = [await call.read() for call in calls]
        assert len({answer.checksum for answer in first}) == 1
        assert all(answer.snapshot and answer.token_key.key for answer in first)
        assert len({answer.token_key.id for answer in first}) == 300
        one_arm(app, 2)
        for call, before in zip(calls, first, strict=True):
            while not (answer := await call.read()).snapshot:
                assert answer.checksum == before.checksum
            assert answer.checksum != before.checksum
            assert not answer.HasField("token_key")
        assert decode(answer.snapshot, answer.checksum).activation == 2
        again = stub.WatchPolicy(pb.WatchPolicyRequest(known_checksum=answer.checksum))
        known = await again.read()
        assert not known.snapshot and known.checksum == answer.checksum
        began = time.monotonic()
        heartbeat = await again.read()
        assert heartbeat == pb.WatchPolicyResponse(
            checksum=answer.checksum, heartbeat_seconds=HEARTBEAT
        )
        assert time.monotonic() - began > HEARTBEAT / 2
        for call in (*calls, again):
            call.cancel()
    assert encodings == {1: 1, 2: 1}


async def test_a_checksum_has_32_bytes(app: App, client: Client) -> None:
    stub = policy_pb2_grpc.PolicyServiceStub(client.channel)  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.WatchPolicy(pb.WatchPolicyRequest(known_checksum=b"short")).read()
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("settings", [{"watch_stall_seconds": 1}], indirect=True)
async def test_who_does_not_read_is_cut_off(app: App) -> None:
    # So that the connection itself takes little for somebody who does not read.
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    local = await following(app)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.port}", options=options) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.WatchPolicy(pb.WatchPolicyRequest())
        await call.read()
        assert watchers() == 2
        for version in range(2, 6):
            one_arm(app, version)
            await becomes(lambda version=version: local.model_version == version)  # type: ignore[misc]
        await becomes(lambda: watchers() == 1)
        with pytest.raises(grpc.aio.AioRpcError, match="nothing was taken") as raised:
            while await call.read():
                pass
        assert raised.value.code() is grpc.StatusCode.ABORTED
    one_arm(app, 6)
    await becomes(lambda: local.model_version == 6)
    await asyncio.to_thread(local.close)


def watchers() -> float:
    return metrics.WATCHERS._value.get()


async def test_it_goes_on_while_the_server_is_away(
    settings: Settings, app: App, client: Client
) -> None:
    one_arm(app)
    local = await following(app, lambda one: one.model_version == 7)
    before = local.get_recommendation_params(ASKED)
    assert local.problem == ""
    port = app.port
    await app.stop()
    await becomes(lambda: local.problem != "")
    during = local.get_recommendation_params(ASKED)
    assert (during.params, during.model_version) == (before.params, 7)
    assert during.decision_token and not during.is_fallback
    age = local.age
    assert age is not None and age < 10
    local._max_age = 0.0
    stale = local.get_recommendation_params(ASKED)
    assert stale.is_fallback and stale.decision_token == b""
    with pytest.raises(LookupError):
        local.decide(ASKED)
    local._max_age = 60.0

    back = App(settings.model_copy(update={"port": port}))
    await back.start()
    try:
        async with connect(f"127.0.0.1:{port}") as again:
            await wait_serving(again)
            one_arm(back, 9)
            await becomes(lambda: local.model_version == 9 and local.problem == "", 20)
    finally:
        await asyncio.to_thread(local.close)
        await back.stop()


async def test_the_rules_answer_where_there_never_was_a_policy() -> None:
    patient = {"decision_timeout": PATIENCE}
    with (
        LocalPolicy("127.0.0.1:1", **patient) as local,
        RecParamsClient("127.0.0.1:1", **patient) as remote,
    ):
        assert local.age is None and local.model_version is None
        assert not local.wait(0)
        found = await asyncio.to_thread(local.get_recommendation_params, ASKED)
        assert found.is_fallback
        assert found == await asyncio.to_thread(remote.get_recommendation_params, ASKED)
        await becomes(lambda: "UNAVAILABLE" in local.problem)


@pytest.mark.usefixtures("client")
async def test_a_version_that_is_no_table_is_asked_for(app: App) -> None:
    samples = np.random.default_rng(1).normal(size=(4, N_ACTIONS, n_features(SPACE)))
    linear = SampledLinearPolicy(SPACE, samples.astype(np.float32), 0.0)
    serve(app, 3, Arm(RL, 6, linear, 1.0))
    local = await following(app, lambda one: one.model_version == 6)
    with local:
        found = await asyncio.to_thread(local.get_recommendation_params, ASKED)
        assert (found.model_version, found.is_fallback) == (6, False)
        assert found.decision_token
        with pytest.raises(LookupError):
            local.decide(ASKED)


@pytest.mark.usefixtures("client")
async def test_a_snapshot_that_is_not_whole_is_refused(app: App) -> None:
    one_arm(app)
    good = snapshots.encode(SPACE, app._holder.serving, OFF)
    assert decode(good.compressed, good.checksum).bins == 3
    for data, checksum in (
        (good.compressed[:-9], good.checksum),
        (good.compressed, bytes(32)),
        (b"", good.checksum),
        (b"nonsense", good.checksum),
    ):
        with pytest.raises(SnapshotError):
            decode(data, checksum)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda one: one.arms.clear(),
        lambda one: setattr(one, "bins", 4),
        lambda one: setattr(one, "bins", 0),
        lambda one: setattr(one.arms[0], "epsilon", 2.0),
        lambda one: setattr(one.arms[0], "share", float("nan")),
        lambda one: setattr(one.arms[0], "actions", b"\x1b" * SPACE.n_states),
        lambda one: setattr(one.arms[0], "sources", b"\x04" * SPACE.n_states),
        lambda one: one.moods.append(types.MOOD_UNSPECIFIED),
        lambda one: one.moods.append(types.MOOD_CALM),
        lambda one: one.times_of_day.append(77),
    ],
)
def test_a_snapshot_passes_the_servers_own_checks(spoil: Callable[[Any], None]) -> None:
    plan = Activation(1, 7, None, Split(), 0, None)
    message = snapshots._message(SPACE, Serving((Arm(RL, 7, table(7), 1.0),), plan, 1), OFF)
    spoil(message)
    data = message.SerializeToString()
    with pytest.raises(SnapshotError):
        decode(zlib.compress(data), hashlib.sha256(data).digest())


VECTORS = json.loads((ROOT / "clients/vectors/local-policy.json").read_text())


def test_vectors_are_what_the_server_computes(tmp_path: Path) -> None:
    file = tmp_path / "vectors.json"
    command = [sys.executable, "tests/local_policy_vectors.py", str(file)]
    assert run(*command, cwd=ROOT).returncode == 0
    again = json.loads(file.read_text())
    for name in ("positions", "checksum", "decisions", "tokens"):
        assert again[name] == VECTORS[name]


def test_the_client_is_held_against_the_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = decode(base64.b64decode(VECTORS["snapshot"]), bytes.fromhex(VECTORS["checksum"]))
    decider = Decider(snapshot, lambda: None)
    names = {context.numbers: words for words, context in snapshot.contexts.items()}
    arms, sources = Counter(), Counter()
    for one in VECTORS["decisions"]:
        words = names[one["content_type"], one["mood"], one["time_of_day"]]
        monkeypatch.setattr(deciding, "random", Chances(*one["chances"]))
        found = decider.decide(one["user_id"], PersonalityProfile(*one["scores"]), *words)
        recommended = found.recommendation
        _, _, _, _, action, arm, source, _, _ = found._made
        assert (action, source, arm) == (
            one["action"],
            one["source"],
            one["policy_arm"],
        )
        assert recommended.model_version == one["model_version"]
        assert recommended.propensity == pytest.approx(one["propensity"], rel=1e-12)
        arms[arm] += 1
        sources[source] += 1
    assert len(arms) == 3
    assert sources[rpb.DECISION_SOURCE_EXPLORATION] > 20
    for one in VECTORS["positions"]:
        assert position_of(one["salt"], one["user_id"].encode()) == one["position"]


def test_tokens_are_sealed_as_the_vectors_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in VECTORS["tokens"]:
        given = one["fields"]
        monkeypatch.setattr(sealing.random, "getrandbits", lambda _, id=given["decision_id"]: id)
        record = pack(
            given["decided_at"],
            given["model_version"],
            given["propensity"],
            (given["content_type"], given["mood"], given["time_of_day"]),
            given["action"],
            given["arm"],
            given["source"],
            tuple(given["traits"]),
            given["activation"],
        )
        key = SealingKey(bytes.fromhex(one["key_id"]), bytes.fromhex(one["key"]), 0)
        assert record.hex() == one["record"]
        assert seal(key, one["user_id"].encode(), record).hex() == one["token"]
