"""The server: puts the parts together, starts them, and takes them down in order."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2

from recparams.v1 import (
    models_pb2,
    policy_pb2,
    recommendation_pb2,
    rollout_pb2,
    system_pb2,
    training_pb2,
)
from recparams_server.background import monitor
from recparams_server.background.maintenance import maintain
from recparams_server.background.reload import keep_up_to_date
from recparams_server.background.restarting import restarting
from recparams_server.background.rollout_watch import watch_rollouts
from recparams_server.background.shadow import count_shadow, flush_shadow
from recparams_server.background.training_schedule import Start, train_on_schedule
from recparams_server.contract.vocabulary import unknown_names
from recparams_server.development import findable, with_admin_key
from recparams_server.garbage import Portions
from recparams_server.jobs.forked import Template
from recparams_server.jobs.processes import Jobs
from recparams_server.observability import metrics, rpc_metrics, scrapes, tracing
from recparams_server.rpc import authorization
from recparams_server.rpc.calls import Calls
from recparams_server.rpc.library import add_library
from recparams_server.rpc.listening import ListenError, listen
from recparams_server.rpc.tls import CertificateError, server_credentials
from recparams_server.services.models import ModelService
from recparams_server.services.policy import PolicyService
from recparams_server.services.recommendation import RecommendationService
from recparams_server.services.rollout import RolloutService
from recparams_server.services.runtime import Runtime
from recparams_server.services.system import SystemService
from recparams_server.services.training import TrainingService
from recparams_server.serving.decider import Decider
from recparams_server.serving.policies import PolicyHolder
from recparams_server.serving.tokens import TokenCodec
from recparams_server.settings import Settings
from recparams_server.store import shared_secrets
from recparams_server.store.database import Pool
from recparams_server.store.errors import STORE_ERRORS, UnusableDatabaseError
from recparams_server.store.migration import connect_when_ready
from recparams_server.store.profiles import ProfileCache

log = structlog.get_logger()
RESTART_SECONDS = 1.0

_DESCRIPTORS = (
    recommendation_pb2.DESCRIPTOR.services_by_name["RecommendationService"],
    training_pb2.DESCRIPTOR.services_by_name["TrainingService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    rollout_pb2.DESCRIPTOR.services_by_name["RolloutService"],
    system_pb2.DESCRIPTOR.services_by_name["SystemService"],
    policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
)
SERVICES = tuple(descriptor.full_name for descriptor in _DESCRIPTORS)


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


async def serve(settings: Settings, *, share_port: bool = False) -> None:
    """Runs a server until SIGTERM or SIGINT, then drains it.

    Raises StartError, also later on if the database turns out to be one it cannot work with.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    problems: list[str] = []

    def give_up(problem: str) -> None:
        problems.append(problem)
        stop.set()

    app = App(settings, share_port=share_port, give_up=give_up)
    await app.start()
    portions = Portions()
    portions.start()
    collecting = asyncio.create_task(portions.follow())
    try:
        with findable(settings, app.port):
            await stop.wait()
    finally:
        log.info("draining", seconds=settings.drain_seconds)
        await app.stop()
        collecting.cancel()
    if problems:
        raise StartError(problems[0])


class App:
    """One server process.

    Args:
        settings: of this process alone; `workers` is for the supervisor.
        share_port: True if other processes may listen on the port too.
        give_up: called with the reason if the server can never serve.
        template: what its jobs are forked from, if that is not to be its own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        share_port: bool = False,
        give_up: Callable[[str], None] | None = None,
        template: Template | None = None,
    ) -> None:
        unknown = unknown_names(settings.space())
        if unknown:
            raise StartError(f"the contract has no {', '.join(unknown)}: see proto/recparams/v1")
        self._settings = settings
        self._give_up = give_up
        self._template = template
        self._holder = PolicyHolder(settings.serving_space(), settings.exploration_rate)
        self._runtime = Runtime(self._holder)
        self._cache = ProfileCache(settings.profile_cache_size, settings.profile_cache_seconds)
        self._health = health.aio.HealthServicer()
        self._monitor = monitor.Monitor(
            self._runtime, self._cache, settings.tls_certificate, settings.tls_key
        )
        self._watched = PolicyService(settings, self._runtime)
        self._tasks: list[asyncio.Task[None]] = []
        if settings.tracing == "on":
            try:
                tracing.start("recparams")
            except tracing.TracingError as failure:
                raise StartError(str(failure)) from None
        self._grpc = grpc.aio.server(
            interceptors=tracing.interceptors(),
            options=[
                # Where it is on, a second server on the port quietly takes half the calls.
                ("grpc.so_reuseport", int(share_port)),
                # Clients may ask every half minute whether an idle connection still lives.
                ("grpc.http2.min_ping_interval_without_data_ms", 15_000),
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                *_connection_age(settings),
            ],
            maximum_concurrent_rpcs=settings.max_concurrent_calls or None,
        )
        self.port = 0

    async def start(self) -> None:
        """Listens at once; health turns SERVING when the database has answered."""
        settings = self._settings
        self.port, addresses = self._listen()
        calls = Calls.from_settings(settings, authorization.admission(with_admin_key(settings)))
        rpc_metrics.set_rpc_stats(calls.stats)
        training = TrainingService(settings, self._runtime)
        services = (
            RecommendationService(settings, self._runtime, self._cache),
            training,
            ModelService(settings, self._runtime),
            RolloutService(settings, self._runtime),
            SystemService(settings, self._runtime, self._cache),
            self._watched,
        )
        for service, descriptor in zip(services, _DESCRIPTORS, strict=True):
            calls.add(self._grpc, service, descriptor)
        add_library(self._grpc, self._health, SERVICES)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        if settings.metrics_port is not None:
            monitor.register(self._monitor)
            self._run_forever(self._monitor.stalls.follow)
            try:
                scrapes.start(settings.metrics_port, addresses)
            except OSError as failure:
                raise StartError(f"metrics_port {settings.metrics_port}: {failure}") from None
        await self._grpc.start()
        log.info("listening", host=settings.host, port=self.port)
        self._run_forever(lambda: self._connect(training.start))

    def _listen(self) -> tuple[int, list[str]]:
        """Opens the port, with TLS where there is a certificate. Raises StartError.

        Returns:
            (the port, the addresses that it is open on).
        """
        settings = self._settings
        add = self._grpc.add_insecure_port
        try:
            if settings.tls_certificate is not None and settings.tls_key is not None:
                credentials = server_credentials(
                    settings.tls_certificate, settings.tls_key, settings.tls_client_ca
                )
                add = partial(self._grpc.add_secure_port, server_credentials=credentials)
            return listen(settings.host, settings.port, add)
        except (CertificateError, ListenError) as failure:
            raise StartError(str(failure)) from None

    async def stop(self) -> None:
        """Turns NOT_SERVING, refuses new calls, lets those under way finish, and ends."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.sleep(self._settings.lame_duck_seconds)
        self._watched.stop()
        await self._grpc.stop(self._settings.drain_seconds)
        # Again and again: a database that fails meanwhile can swallow a cancellation.
        while alive := [task for task in self._tasks if not task.done()]:
            for task in alive:
                task.cancel()
            await asyncio.wait(alive, timeout=RESTART_SECONDS)
        if self._runtime.jobs is not None:
            await self._runtime.jobs.stop()
        if self._runtime.pool is not None:
            with contextlib.suppress(*STORE_ERRORS):
                async with asyncio.timeout(2):
                    await flush_shadow(self._holder, self._runtime.pool)
                    await self._runtime.pool.close()
        await asyncio.to_thread(tracing.stop)
        log.info("stopped")

    def _run_forever(self, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(restarting(work)))

    async def _connect(self, start_training: Start) -> None:
        """Brings the database up, then all that needs it."""
        settings, runtime = self._settings, self._runtime
        try:
            url, pool = await connect_when_ready(settings)
        except UnusableDatabaseError as failure:
            log.error("not serving", error=str(failure))
            if self._give_up is not None:
                self._give_up(str(failure))
            return
        runtime.tokens = TokenCodec(await self._token_key(pool), settings.earlier_token_keys())
        runtime.decider = Decider(
            self._holder, runtime.tokens, settings.served_exploration(), settings.random_seed
        )
        metrics.set_decision_counts(runtime.decider.decided)
        runtime.jobs = Jobs(settings, url, self._template)
        runtime.pool = pool
        ready = asyncio.Event()
        self._run_forever(
            lambda: keep_up_to_date(
                url,
                self._holder,
                self._cache.forget,
                settings.reload_poll_seconds,
                ready.set,
            )
        )
        self._run_forever(lambda: maintain(pool, settings.retention, settings.retention_versions))
        self._run_forever(lambda: count_shadow(self._holder, pool))
        jobs = runtime.jobs
        self._run_forever(lambda: watch_rollouts(settings, pool, jobs))
        schedule = settings.training_schedule()
        if schedule is not None:
            grace = timedelta(seconds=settings.schedule_grace_seconds)
            self._run_forever(lambda: train_on_schedule(schedule, grace, pool, start_training))
        await ready.wait()
        if settings.metrics_port is not None:
            self._run_forever(self._monitor.follow)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        log.info(
            "serving", host=settings.host, port=self.port, version=self._holder.serving.version
        )

    async def _token_key(self, pool: Pool) -> bytes:
        if self._settings.token_key is not None:
            return self._settings.token_key.get_secret_value().encode()
        while True:
            try:
                return await shared_secrets.shared_secret(pool, "token_key")
            except STORE_ERRORS as failure:
                log.warning("waiting for the database", error=failure)
            await asyncio.sleep(RESTART_SECONDS)

    async def _set_health(self, status: Any) -> None:
        self._monitor.serving = status == health_pb2.HealthCheckResponse.SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)


def _connection_age(settings: Settings) -> list[tuple[str, int]]:
    """Returns channel options that make clients reconnect now and then, to find new replicas."""
    if not settings.max_connection_age_seconds:
        return []
    return [
        ("grpc.max_connection_age_ms", int(1000 * settings.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", int(1000 * settings.long_call_timeout_seconds)),
    ]
