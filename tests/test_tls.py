"""TLS and mTLS on the port: real certificates, real channels, and certificates that change."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from recparams_client import (
    AsyncRecParamsClient,
    DecisionRequest,
    RecParamsClient,
    tls_credentials,
)
from recparams_server.app import App, StartError
from recparams_server.rpc.tls import CertificateError, server_credentials
from recparams_server.settings import Settings
from tests.faults import eventually
from tests.processes import communicate
from tests.support import ROOT, environment, start_in_vain

Start = Callable[..., AbstractAsyncContextManager[App]]


@dataclass(frozen=True)
class Files:
    """PEM files of one server and one client, and of those who signed them."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def issue(self, name: str, ca: trustme.CA, *, common_name: str = "trainer") -> None:
        """Writes a certificate and its key."""
        issued = ca.issue_cert("127.0.0.1", "localhost", common_name=common_name)
        self.path(name).write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.path(f"{name}-key").write_bytes(issued.private_key_pem.bytes())

    def server_settings(self) -> dict[str, Path]:
        return {"tls_certificate": self.path("server"), "tls_key": self.path("server-key")}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA) -> Files:
    made = Files(tmp_path / "pki")
    made.folder.mkdir()
    ca.cert_pem.write_to_path(made.path("ca"))
    other_ca.cert_pem.write_to_path(made.path("other-ca"))
    made.issue("server", ca)
    made.issue("client", ca)
    made.issue("stranger", other_ca)
    return made


@pytest.fixture
def start(settings: Settings) -> Start:
    """Runs a server with more settings within the test's event loop."""

    @asynccontextmanager
    async def run(**more: object) -> AsyncIterator[App]:
        running = App(Settings(**{**settings.model_dump(), **more}))
        await running.start()
        try:
            await eventually(_is_ready(running))
            yield running
        finally:
            await running.stop()

    return run


def _is_ready(app: App) -> Callable[[], Awaitable[bool]]:
    """Returns a function that says if the server has its database."""

    async def ready() -> bool:
        return app._runtime.decider is not None and app._holder.is_loaded

    return ready


async def reaches(app: App, credentials: grpc.ChannelCredentials | None) -> bool:
    """Whether a new connection gets an answer."""
    target = f"127.0.0.1:{app.port}"
    # Channels of one process share connections unless they are told not to.
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with (
        grpc.aio.insecure_channel(target, options=options)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, options=options)
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        except grpc.aio.AioRpcError as raised:
            assert raised.code() == grpc.StatusCode.UNAVAILABLE
            return False
        return True


async def test_tls_lets_in_who_trusts_the_server(start: Start, files: Files) -> None:
    async with start(**files.server_settings()) as app:
        assert await reaches(app, tls_credentials(files.path("ca")))
        assert not await reaches(app, tls_credentials(files.path("other-ca")))
        assert not await reaches(app, None)


async def test_mtls_lets_in_whom_the_ca_knows(start: Start, files: Files) -> None:
    ca = files.path("ca")
    async with start(**files.server_settings(), tls_client_ca=ca) as app:
        known = tls_credentials(ca, files.path("client"), files.path("client-key"))
        stranger = tls_credentials(ca, files.path("stranger"), files.path("stranger-key"))
        assert await reaches(app, known)
        assert not await reaches(app, stranger)
        assert not await reaches(app, tls_credentials(ca))


async def test_certificates_are_followed_without_a_restart(
    start: Start, files: Files, other_ca: trustme.CA
) -> None:
    old, new = tls_credentials(files.path("ca")), tls_credentials(files.path("other-ca"))
    async with start(**files.server_settings()) as app:
        assert await reaches(app, old)
        files.issue("server", other_ca)
        assert await reaches(app, new)
        assert not await reaches(app, old)


async def test_the_client_ca_is_followed_too(start: Start, files: Files) -> None:
    trusted = files.path("trusted")
    trusted.write_bytes(files.path("ca").read_bytes())
    client = tls_credentials(files.path("ca"), files.path("client"), files.path("client-key"))
    stranger = tls_credentials(files.path("ca"), files.path("stranger"), files.path("stranger-key"))
    async with start(**files.server_settings(), tls_client_ca=trusted) as app:
        assert await reaches(app, client)
        trusted.write_bytes(files.path("other-ca").read_bytes())
        assert await reaches(app, stranger)
        assert not await reaches(app, client)


async def test_a_broken_certificate_leaves_the_last_good_one(
    start: Start, files: Files, ca: trustme.CA
) -> None:
    trusting = tls_credentials(files.path("ca"))
    async with start(**files.server_settings()) as app:
        assert await reaches(app, trusting)
        with capture_logs() as logs:
            files.path("server").write_text("not a certificate")
            assert await reaches(app, trusting)
            assert await reaches(app, trusting)
            files.path("server-key").unlink()
            assert await reaches(app, trusting)
        refused = [line for line in logs if line["event"].startswith("new certificate refused")]
        assert [line["log_level"] for line in refused] == ["error", "error"]
        assert "cannot be read" in refused[-1]["error"]
        with capture_logs() as logs:
            files.issue("server", ca)
            assert await reaches(app, trusting)
        assert [line["event"] for line in logs] == ["certificate reloaded"]


def test_files_that_cannot_be_used_are_named(files: Files) -> None:
    server, key, ca = (files.path(name) for name in ("server", "server-key", "ca"))
    junk = files.path("junk")
    junk.write_text("junk")
    encrypted = files.path("encrypted")
    encrypted.write_bytes(
        load_pem_private_key(key.read_bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
        )
    )
    for given, said in (
        ((files.path("none"), key, None), "tls_certificate .*none.pem cannot be read: No such"),
        ((server, files.path("none"), None), "tls_key .*none.pem cannot be read: No such"),
        ((server, files.folder, None), "tls_key .* cannot be read: Is a directory"),
        ((server, files.path("client-key"), None), "its own unencrypted key .*MISMATCH"),
        ((server, encrypted, None), "its own unencrypted key"),
        ((junk, key, None), "not a PEM certificate"),
        ((server, key, files.path("none")), "tls_client_ca .* cannot be read: No such"),
        ((server, key, junk), "tls_client_ca .* has no PEM certificate"),
    ):
        with pytest.raises(CertificateError, match=said):
            server_credentials(*given)
    server_credentials(server, key, ca)


async def test_a_server_without_its_certificate_does_not_start(start: Start, files: Files) -> None:
    files.path("server-key").unlink()
    with pytest.raises(StartError, match=r"tls_key .*cannot be read"):
        async with start(**files.server_settings()):
            pass
    done = start_in_vain(port=0, workers=2, data_dir=files.folder, **files.server_settings())
    assert done.returncode == 1
    assert "tls_key" in done.stderr
    assert "Traceback" not in done.stderr


async def test_the_command_line_and_the_client_use_tls(start: Start, files: Files) -> None:
    ca, cert, key = (files.path(name) for name in ("ca", "client", "client-key"))
    async with start(**files.server_settings(), tls_client_ca=ca) as app:
        target = f"127.0.0.1:{app.port}"

        async def cli(*arguments: str, **variables: object) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *(
                    "-m",
                    "recparams_server.cli",
                    "recommend",
                    "ada",
                    "--address",
                    target,
                    *arguments,
                ),
                env=environment("postgresql:///none", **variables),
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            output, _ = await communicate(process)
            return process.returncode, output.decode()

        code, output = await cli("--ca", str(ca), "--cert", str(cert), "--key", str(key))
        assert code == 0, output
        code, output = await cli(ca=ca, cert=cert, key=key)
        assert code == 0, output
        assert (await cli("--cert", str(cert), "--key", str(key)))[0] == 2
        assert (await cli("--ca", str(ca), "--cert", str(cert)))[0] == 2

        request = DecisionRequest("ada", "music", time_of_day="evening")
        credentials = tls_credentials(ca, cert, key)
        async with AsyncRecParamsClient(
            target, credentials=credentials, decision_timeout=30
        ) as asynchronous:
            assert not (await asynchronous.get_recommendation_params(request)).is_fallback
        with RecParamsClient(target, credentials=credentials, decision_timeout=30) as blocking:
            answer = await asyncio.to_thread(blocking.get_recommendation_params, request)
            assert not answer.is_fallback
