"""Metrics that are read off the server at each scrape, and off the database now and then."""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recparams_server.observability.stalls import StallMeter
from recparams_server.rpc.tls import CertificateError, expires_at
from recparams_server.services.runtime import Runtime
from recparams_server.store.errors import STORE_ERRORS
from recparams_server.store.monitoring import Figures, read_figures
from recparams_server.store.profiles import ProfileCache

log = structlog.get_logger()
LOOK_SECONDS = 20.0
"""Between two looks at the database."""
LOOK_TIMEOUT = 5.0


class Monitor(Collector):
    """Collects the metrics of one server at each scrape.

    Args:
        runtime: the parts of the server.
        cache: its profiles.
        certificate, key: its files for TLS, or None.

    Attributes:
        serving: True while health says SERVING.
        stalls: measures the stalls of the event loop.
    """

    def __init__(
        self, runtime: Runtime, cache: ProfileCache, certificate: Path | None, key: Path | None
    ) -> None:
        self._runtime = runtime
        self._cache = cache
        self._certificate = certificate
        self._key = key
        self._expires_at: float | None = None
        self._figures: Figures | None = None
        self._database_up = False
        self.serving = False
        self.stalls = StallMeter()

    async def follow(self) -> None:
        """Looks at the database and the certificate again and again, until cancelled."""
        while True:
            if self._certificate is not None and self._key is not None:
                # Of files that cannot be used none is: what was read before is still served.
                with contextlib.suppress(CertificateError):
                    self._expires_at = await asyncio.to_thread(
                        expires_at, self._certificate, self._key
                    )
            try:
                await self._look()
            except STORE_ERRORS as failure:
                log.info("metrics of the database put off", error=failure)
                self._database_up = False
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        async with (
            asyncio.timeout(LOOK_TIMEOUT),
            self._runtime.require_pool().acquire(timeout=LOOK_TIMEOUT) as connection,
        ):
            self._figures = await read_figures(connection, self._runtime.holder.serving.version)
        self._database_up = True

    def collect(self) -> Iterable[Metric]:
        """Every family, those without a sample included."""
        serving = self._runtime.holder.serving
        yield _gauge("recparams_serving", "1 where health says SERVING", float(self.serving))
        yield _gauge(
            "recparams_serving_version",
            "Version this server serves; 0 is the rules",
            serving.version,
        )
        yield _gauge(
            "recparams_policy_refused",
            "1 where the newest activation failed its checks and an earlier one is served",
            float(bool(serving.refused)),
        )
        yield _gauge(
            "recparams_tls_certificate_expiry_timestamp_seconds",
            "End of the server's certificate; none without TLS",
            self._expires_at,
        )
        yield _gauge(
            "recparams_event_loop_stall_seconds",
            "Longest time of the last minute or two in which this worker answered nobody",
            self.stalls.longest,
        )
        yield from self._database()
        yield self._jobs()
        yield self._profiles()
        yield from _of_figures(self._figures)

    def _database(self) -> Iterable[Metric]:
        yield _gauge(
            "recparams_database_up",
            f"1 where the last look, every {LOOK_SECONDS:g} s, had an answer",
            float(self._database_up),
        )
        pool = self._runtime.pool
        connections = GaugeMetricFamily(
            "recparams_database_connections", "Connections of the pool", labels=["state"]
        )
        if pool is not None:
            idle = pool.get_idle_size()
            connections.add_metric(["idle"], idle)
            connections.add_metric(["in_use"], pool.get_size() - idle)
        yield connections
        yield _gauge(
            "recparams_database_connections_max",
            "Most connections of the pool",
            None if pool is None else pool.get_max_size(),
        )

    def _jobs(self) -> Metric:
        family = GaugeMetricFamily(
            "recparams_worker_processes", "Worker processes of this server", labels=["task"]
        )
        jobs = self._runtime.jobs
        for task, count in () if jobs is None else jobs.running().items():
            family.add_metric([task], count)
        return family

    def _profiles(self) -> Metric:
        family = CounterMetricFamily(
            "recparams_profile_cache_lookups",
            "Stored profiles looked for in memory",
            labels=["result"],
        )
        family.add_metric(["hit"], self._cache.hits)
        family.add_metric(["miss"], self._cache.misses)
        return family


class _Current(Collector):
    """The monitor of the server in this process."""

    monitor: Monitor | None = None

    def collect(self) -> Iterable[Metric]:
        return () if self.monitor is None else self.monitor.collect()


_CURRENT = _Current()
REGISTRY.register(_CURRENT)


def register(monitor: Monitor) -> None:
    """Has scrapes collect from a monitor, in place of the one before."""
    _CURRENT.monitor = monitor


def _of_figures(figures: Figures | None) -> Iterable[Metric]:
    """Yields the metrics of the database, the same on all replicas; none before the first look."""
    runs = CounterMetricFamily("recparams_training_runs", "Runs by status", labels=["status"])
    stages = GaugeMetricFamily(
        "recparams_training_stage_seconds", "Time of the last run's stages", labels=["stage"]
    )
    outcomes = CounterMetricFamily(
        "recparams_training_outcomes",
        "Completed runs by what became of their version",
        labels=["outcome"],
    )
    if figures is not None:
        for status, count in figures.runs.items():
            runs.add_metric([status], count)
        for outcome, count in figures.outcomes.items():
            outcomes.add_metric([outcome], count)
        for stage, seconds in figures.last_run.get("stage_seconds", {}).items():
            stages.add_metric([stage], seconds)
    yield runs
    yield outcomes
    yield stages
    found: dict[str, Any] = {} if figures is None else _flat(figures)
    for name, help_text in _FIGURES.items():
        yield _gauge(name, help_text, found.get(name))


_FIGURES = {
    "recparams_training_running": "1 while a run is pending or running",
    "recparams_training_refused_in_a_row": "Newest runs in a row whose version was refused",
    "recparams_training_last_timestamp_seconds": "End of the last run with a result; before any, "
    "when the first interaction was recorded",
    "recparams_training_interactions_waiting": "About how many interactions no run has trained",
    "recparams_training_reward": "Mean reward of the interactions of the last run",
    "recparams_training_interactions": "Interactions that the last run trained",
    "recparams_training_users": "People whose interactions the last run trained",
    "recparams_q_table_states": "States with a visit, after the last run",
    "recparams_q_table_state_actions": "Pairs of state and action with a visit, after the last run",
    "recparams_q_table_mean": "Mean Q-value of those pairs",
    "recparams_q_table_max": "Largest Q-value of those pairs",
    "recparams_learning_gain": "Mean reward of what was learned minus that of the rules, by those "
    "who are held back",
    "recparams_learning_gain_low": "Lower end of its interval",
    "recparams_learning_gain_high": "Upper end of its interval",
    "recparams_model_age_seconds": "Since the served version was made; none for the rules",
}


def _flat(figures: Figures) -> dict[str, Any]:
    run = figures.last_run
    stats = run.get("agent_stats", {})
    found = {
        "recparams_training_running": figures.runs["pending"] + figures.runs["running"],
        "recparams_training_refused_in_a_row": figures.refused_in_a_row,
        "recparams_training_interactions_waiting": figures.waiting,
        "recparams_training_reward": run.get("average_reward"),
        "recparams_training_interactions": run.get("interactions_trained"),
        "recparams_training_users": run.get("users_trained"),
        "recparams_q_table_states": stats.get("total_states"),
        "recparams_q_table_state_actions": stats.get("total_state_actions"),
        "recparams_q_table_mean": stats.get("avg_q_value"),
        "recparams_q_table_max": stats.get("max_q_value"),
    }
    if figures.trained_at is not None:
        found["recparams_training_last_timestamp_seconds"] = figures.trained_at.timestamp()
    if figures.gain is not None:
        found["recparams_learning_gain"] = figures.gain.difference
        if figures.gain.HasField("low"):
            found["recparams_learning_gain_low"] = figures.gain.low
            found["recparams_learning_gain_high"] = figures.gain.high
    if figures.model_created_at is not None:
        age = time.time() - figures.model_created_at.timestamp()
        found["recparams_model_age_seconds"] = age
    return found


def _gauge(name: str, help_text: str, value: float | None) -> Metric:
    """A gauge without labels; without a sample for None."""
    return GaugeMetricFamily(name, help_text, value=value)
