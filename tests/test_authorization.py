"""Who may call what: admin keys by their hashes, roles of callers, and the limits of a server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import trustme
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from pydantic import SecretStr, ValidationError

from recparams.v1 import (
    models_pb2,
    models_pb2_grpc,
    policy_pb2,
    recommendation_pb2,
    rollout_pb2,
    system_pb2,
    training_pb2,
)
from recparams.v1 import recommendation_pb2 as pb
from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    RecParamsClient,
    RecParamsError,
    tls_credentials,
)
from recparams_server.app import SERVICES, App
from recparams_server.cli.connection import Exit
from recparams_server.settings import Settings
from recparams_server.settings.callers import Role, key_hash, parse_callers
from tests import processes
from tests.support import (
    ADMIN,
    ADMIN_KEY,
    ROOT,
    Client,
    connect,
    environment,
    failure_of,
    logged,
    request,
    wait_serving,
)

KEYS = {role: f"a long and random key that may {role}" for role in Role}
CALLERS = (*(f"{role}-only:{role}:{key_hash(key)}" for role, key in KEYS.items()),)
OPEN = {"GetSystemHealth"}
DENIED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in (
        models_pb2,
        policy_pb2,
        recommendation_pb2,
        rollout_pb2,
        system_pb2,
        training_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def metadata(key: str, header: str = "x-api-key") -> tuple[tuple[str, str], ...]:
    return ((header, key),)


async def outcome(client: Client, path: str, sent: Any) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call with an empty message."""
    method = METHODS[path]
    kind = (
        f"{'stream' if method.client_streaming else 'unary'}_"
        f"{'stream' if method.server_streaming else 'unary'}"
    )
    message: Any = iter([b""]) if method.client_streaming else b""
    call = getattr(client.channel, kind)(path)(message, metadata=sent, timeout=20)
    try:
        await (call.read() if method.server_streaming else call)
    except grpc.aio.AioRpcError as raised:
        failure = await failure_of(_again(raised))
        return failure.code, failure.reason
    return grpc.StatusCode.OK, ""


async def _again(raised: grpc.aio.AioRpcError) -> None:
    raise raised


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return Settings(**{**settings.model_dump(), "authorization": "keys", "callers": CALLERS})


def test_every_service_is_looked_at() -> None:
    assert {path.split("/")[1] for path in METHODS} == set(SERVICES)


async def test_every_rpc_asks_who_calls(client: Client) -> None:
    for path, method in METHODS.items():
        if method.name in OPEN:
            continue
        assert await outcome(client, path, ()) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "NO_CREDENTIALS",
        ), path
        assert await outcome(client, path, metadata("wrong")) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "UNKNOWN_CALLER",
        ), path


async def test_a_caller_may_do_what_its_role_is_for(client: Client) -> None:
    needed = {
        "/recparams.v1.RecommendationService/GetRecommendationParams": Role.RECOMMEND,
        "/recparams.v1.RecommendationService/BatchGetRecommendationParams": Role.RECOMMEND,
        "/recparams.v1.RecommendationService/RecordInteractions": Role.RECORD,
        "/recparams.v1.RecommendationService/PutPersonalityProfiles": Role.RECORD,
        "/recparams.v1.PolicyService/WatchPolicy": Role.RECORD,
        "/recparams.v1.TrainingService/CancelTrainingRun": Role.TRAIN,
        "/recparams.v1.TrainingService/WatchTrainingRun": Role.TRAIN,
        "/recparams.v1.ModelService/ListModels": Role.ADMINISTER,
        "/recparams.v1.ModelService/ExportModel": Role.ADMINISTER,
        "/recparams.v1.RolloutService/GetRollout": Role.ADMINISTER,
    }
    for path, role in needed.items():
        for other, key in KEYS.items():
            code, reason = await outcome(client, path, metadata(key))
            denied = (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING")
            assert denied == (other not in (role, Role.ADMINISTER)), (path, other, code)
        # The admin key is still an administrator's, and either header will do for any key.
        for sent in (ADMIN, metadata(KEYS[role], "x-admin-key"), metadata(ADMIN_KEY)):
            code, _ = await outcome(client, path, sent)
            assert code not in DENIED, path


async def test_a_denial_says_who_lacks_what(client: Client) -> None:
    call = client.recommendation.RecordInteractions(
        pb.RecordInteractionsRequest(), metadata=metadata(KEYS[Role.RECOMMEND])
    )
    failure = await failure_of(call)
    assert failure.code == grpc.StatusCode.PERMISSION_DENIED
    assert failure.reason == "ROLE_MISSING"
    assert failure.metadata == {"caller": "recommend-only", "role": "record"}


async def test_health_and_reflection_stay_open(client: Client) -> None:
    answer = await client.health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    listing = ServerReflectionStub(client.channel).ServerReflectionInfo(
        iter([ServerReflectionRequest(list_services="")])
    )
    names = [one.name for one in (await listing.read()).list_services_response.service]
    assert set(SERVICES) <= set(names)
    health = "/recparams.v1.SystemService/GetSystemHealth"
    assert (await outcome(client, health, ()))[0] not in DENIED


async def test_the_clients_send_their_key(app: App, client: Client) -> None:
    target = f"127.0.0.1:{app.port}"
    one = DecisionRequest("ada", "music", time_of_day="evening")
    key = KEYS[Role.RECOMMEND]
    async with AsyncRecParamsClient(target, api_key=key, decision_timeout=30) as recparams:
        assert not (await recparams.get_recommendation_params(one)).is_fallback
        assert len(await recparams.batch_get_recommendation_params([one])) == 1
        with pytest.raises(RecParamsError) as raised:
            await recparams.put_personality_profiles({})
        assert raised.value.reason == "ROLE_MISSING"

    def blocking() -> None:
        with RecParamsClient(target, api_key=KEYS[Role.RECORD]) as recparams:
            with pytest.raises(RecParamsError) as raised:
                recparams.get_recommendation_params(one, timeout=30)
            assert raised.value.reason == "ROLE_MISSING"
            with pytest.raises(RecParamsError) as raised:
                recparams.put_personality_profiles({})
            assert raised.value.code == grpc.StatusCode.INVALID_ARGUMENT

    await asyncio.to_thread(blocking)


async def test_simulated_people_call_with_the_key(app: App, db: asyncpg.Connection) -> None:
    def simulate(key: str) -> int:
        command = ["simulate", "--decisions", "50", "--people", "20", "--admin-key", key]
        return processes.run(
            *(sys.executable, "-m", "recparams_server.cli", *command),
            *("--address", f"127.0.0.1:{app.port}"),
            env=environment("postgresql:///none"),
            cwd=ROOT,
        ).returncode

    assert await asyncio.to_thread(simulate, "wrong") == Exit.REFUSED
    assert await db.fetchval("SELECT count(*) FROM interactions") == 0
    assert await asyncio.to_thread(simulate, ADMIN_KEY) == Exit.OK
    assert await db.fetchval("SELECT count(*) FROM interactions") >= 50


@pytest.fixture
async def mtls(settings: Settings, tmp_path: Path) -> AsyncIterator[Any]:
    """Makes credentials by common name, for a server that knows only `trainer`."""
    ca = trustme.CA()
    file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(file)

    def issue(name: str) -> tuple[Path, Path]:
        issued = ca.issue_cert("127.0.0.1", common_name=name)
        certificate, key = tmp_path / f"{name}.pem", tmp_path / f"{name}-key.pem"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    certificate, key = issue("server")
    running = App(
        Settings(
            **{
                **settings.model_dump(),
                "callers": ("cron:train:cn=trainer", *CALLERS),
                "tls_certificate": certificate,
                "tls_key": key,
                "tls_client_ca": file,
            }
        )
    )
    await running.start()

    def channel(name: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            f"127.0.0.1:{running.port}",
            tls_credentials(file, *issue(name)),
            options=(("grpc.use_local_subchannel_pool", 1),),
        )

    yield channel
    await running.stop()


async def test_a_certificate_says_who_calls(mtls: Any) -> None:
    train = "/recparams.v1.TrainingService/CancelTrainingRun"
    recommend = "/recparams.v1.RecommendationService/GetRecommendationParams"

    async def reason(channel: grpc.aio.Channel, path: str, sent: Any = ()) -> str:
        return (await failure_of(channel.unary_unary(path)(b"", metadata=sent))).reason

    async with mtls("trainer") as trainer, mtls("stranger") as stranger:
        assert await reason(trainer, recommend) == "ROLE_MISSING"
        assert await reason(stranger, train) == "UNKNOWN_CALLER"
        # Past the check: what is wrong now is the request, or that the database is not up yet.
        assert await reason(trainer, train) not in ("ROLE_MISSING", "UNKNOWN_CALLER")
        # A key that is sent counts instead of the certificate.
        key = metadata(KEYS[Role.RECOMMEND])
        assert await reason(stranger, recommend, key) != "UNKNOWN_CALLER"
        assert await reason(trainer, train, metadata("wrong")) == "UNKNOWN_CALLER"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"callers": "backend"}, "callers: .*name:role"),
        ({"callers": f"backend:{key_hash('k')}"}, "'backend' has a role other than recommend"),
        ({"callers": f"backend:write:{key_hash('k')}"}, "'backend' has a role other than"),
        ({"callers": "backend:record:a-plain-key"}, "'backend' needs a credential as in"),
        ({"callers": "backend:record:sha256:12"}, "'backend' needs a credential as in"),
        ({"callers": "backend:record:cn="}, "'backend' needs the common name"),
        ({"callers": "backend:record:cn=b"}, "cn= need tls_client_ca"),
        (
            {"callers": f"a:record:{key_hash('k')},b:train:{key_hash('k')}"},
            "'a' has the key or name of another caller",
        ),
        (
            {"callers": f"a:record:{key_hash('k')}", "authorization": "admin_only"},
            "callers need authorization keys",
        ),
        ({"admin_key_hashes": "sha256:xyz"}, "admin_key_hashes needs hashes as sha256:"),
        ({"admin_key_hashes": "a" * 64}, "admin_key_hashes needs hashes as sha256:"),
        *(
            ({"admin_key_hashes": f"{key_hash('k')},{key_hash(blank)}"}, "hash of a blank key")
            for blank in ("", " ", "\n", "\r\n")
        ),
        ({"callers": f"a:record:{key_hash('')}"}, "'a' has the hash of a blank key"),
        ({"admin_key": " "}, "admin_key\n.*must not be blank"),
        ({"admin_key": "\t" * 20, "environment": "production"}, "admin_key\n.*must not be blank"),
        ({"admin_key": SecretStr("  ")}, "admin_key\n.*must not be blank"),
        ({"admin_key": f"k{' ' * 20}", "environment": "production"}, "short"),
        ({"token_key": " " * 40}, "token_key\n.*must not be blank"),
        ({"token_key": f"k{' ' * 40}"}, "token_key must have 32"),
        ({"tls_key": "key.pem"}, "tls_certificate and tls_key need each other"),
        ({"tls_certificate": "cert.pem"}, "tls_certificate and tls_key need each other"),
        ({"tls_client_ca": "ca.pem"}, "tls_client_ca needs tls_certificate"),
        ({"token_keys_before": "short"}, "token_keys_before must have 32"),
        ({"max_message_bytes": 10}, "max_message_bytes"),
        ({"max_concurrent_calls": -1}, "max_concurrent_calls"),
        (
            {"environment": "production", "admin_key_hashes": key_hash("your-key")},
            "well-known",
        ),
    ],
)
def test_wrong_settings_say_what_is_wrong(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        Settings(**{"authorization": "keys", **given})
    assert "a-plain-key" not in str(raised.value.errors(include_input=False, include_url=False))


def test_callers_are_read_as_they_are_written() -> None:
    backend, cron = parse_callers(
        [f"backend:recommend+record:{key_hash('k')}", "cron:train:cn=svc:trainer"]
    )
    assert (backend.name, backend.roles) == ("backend", {Role.RECOMMEND, Role.RECORD})
    assert backend.key is not None and backend.common_name is None
    assert (cron.name, cron.key, cron.common_name) == ("cron", None, "svc:trainer")


def test_a_child_process_gets_the_same_security(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        environment="production",
        admin_key_hashes=f"{key_hash('one')}, {key_hash('two')}",
        authorization="keys",
        callers=",".join(CALLERS),
        tls_certificate="cert.pem",
        tls_key="key.pem",
        token_keys_before=f"{'a' * 32},{'b' * 32}",
    )
    assert len(settings.admin_digests()) == 2
    assert settings.earlier_token_keys() == (b"a" * 32, b"b" * 32)
    for name, value in settings.to_environment("postgresql://a/b").items():
        monkeypatch.setenv(name, value)
    assert Settings().model_dump(exclude={"database_url"}) == settings.model_dump(
        exclude={"database_url"}
    )


async def test_admin_keys_change_one_by_one(settings: Settings) -> None:
    """By default: decisions ask for nothing, and each key of which there is a hash is valid."""
    keys = ["the key of last year", "the key of this year"]
    changing = {
        "authorization": "admin_only",
        "callers": (),
        "admin_key": None,
        "admin_key_hashes": tuple(map(key_hash, keys)),
    }
    app = App(Settings(**{**settings.model_dump(), **changing}))
    await app.start()
    try:
        async with connect(f"127.0.0.1:{app.port}") as client:
            await wait_serving(client)
            await client.recommendation.GetRecommendationParams(request())
            listing = models_pb2_grpc.ModelServiceStub(client.channel).ListModels
            for key in keys:
                sent = metadata(key, "x-admin-key")
                await listing(models_pb2.ListModelsRequest(), metadata=sent)
            # A hash is no key.
            for wrong in ("another key", key_hash(keys[0]), key_hash(keys[0])[7:]):
                sent = metadata(wrong, "x-admin-key")
                failure = await failure_of(listing(models_pb2.ListModelsRequest(), metadata=sent))
                assert failure.reason == "WRONG_ADMIN_KEY"
    finally:
        await app.stop()
    assert not (settings.data_dir / "admin-key").exists()


def test_a_new_key_comes_with_its_hash() -> None:
    def run(*arguments: str) -> str:
        done = processes.run(
            *(sys.executable, "-m", "recparams_server.cli", "new-key", *arguments),
            env=environment("postgresql:///none"),
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    made = json.loads(run("--json"))
    assert made["hash"] == key_hash(made["key"])
    assert len(made["key"]) >= 43
    key, hashed = (line.split()[1] for line in run().splitlines())
    assert hashed == key_hash(key)
    assert key != made["key"]


async def test_calls_above_the_limits_are_refused(settings: Settings) -> None:
    limits = {"max_concurrent_calls": 3, "max_message_bytes": 100_000}
    free = {"authorization": "admin_only", "callers": ()}
    app = App(Settings(**{**settings.model_dump(), **free, **limits}))
    await app.start()
    try:
        async with connect(f"127.0.0.1:{app.port}") as client:
            await wait_serving(client)
            large = pb.RecordInteractionsRequest(
                interactions=[logged(f"i{n:060}", "ada") for n in range(1000)]
            )
            assert large.ByteSize() > 100_000
            failure = await failure_of(client.recommendation.RecordInteractions(large))
            assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            watches = [client.health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
            for watch in watches:
                await watch.read()
            failure = await failure_of(client.recommendation.GetRecommendationParams(request()))
            assert failure.code == grpc.StatusCode.RESOURCE_EXHAUSTED
            one = DecisionRequest("ada", "music", time_of_day="evening")
            async with AsyncRecParamsClient(
                f"127.0.0.1:{app.port}", decision_timeout=2
            ) as recparams:
                decision = await recparams.get_recommendation_params(one)
                assert decision.fallback_reason == "client_unavailable"
            for watch in watches:
                watch.cancel()
            while True:
                await asyncio.sleep(0.02)
                try:
                    await client.recommendation.GetRecommendationParams(request())
                    break
                except grpc.aio.AioRpcError as raised:
                    assert raised.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await app.stop()
