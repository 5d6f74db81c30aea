"""Settings of a server process: address, database, memory, shutting down, logs."""

from datetime import timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator

from recparams_rl.exploration import OFF, POSTERIOR, SCHEDULE, Exploration
from recparams_server.settings.database_url import DatabaseUrl, parse_database_url
from recparams_server.settings.fields import Part, Secret

ExplorationName = Literal["off", "schedule", "posterior"]


class ServingSettings(Part):
    """Settings of a server and its processes."""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on, of IPv4 or IPv6 (::1 is the same as [::1], and :: every "
        "address of both), or a name, of which every address is listened on.",
    )
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Server processes that share the port, for machines with more than one CPU "
        "core; above 1 a supervisor restarts one that dies.",
    )
    database_url: Secret = Field(
        None,
        validation_alias=AliasChoices("database_url", "RECPARAMS_DATABASE_URL", "DATABASE_URL"),
        description="Postgres 14 or newer, as postgresql://user:password@host:port/name, with "
        "parameters as libpq takes them. Absent: an embedded Postgres in the data directory. "
        "DATABASE_URL is read too.",
    )
    data_dir: Path = Field(
        Path(".recparams"),
        description="Where the embedded Postgres and a development admin key are kept.",
    )
    database_pool_size: int = Field(8, ge=2, le=200, description="Most database connections.")
    max_jobs: int = Field(
        4,
        ge=1,
        le=1000,
        description="Processes at a time that evaluate, compare arms, export and import, for each "
        "worker; calls above it are refused with RESOURCE_EXHAUSTED. Training runs, of which there "
        "is one at a time, and the watch over rollouts are not counted.",
    )
    max_jobs_of_a_kind: int = Field(
        2, ge=1, le=1000, description="The same of each of these four kinds."
    )
    exploration: ExplorationName | Annotated[float, Field(ge=0, le=1)] = Field(
        "posterior",
        description="How often another action than the best is tried while serving: posterior "
        "(where it may be the best, by what is known), schedule (at random, the less the more "
        "interactions were trained, whatever is served), a number from 0 to 1 (at random), or off.",
    )
    random_seed: int | None = Field(
        None,
        ge=0,
        description="Has a server try the same by chance when it gets the same requests, so that "
        "a simulation can be repeated. Not for people: whoever knows it knows what is tried.",
    )
    reload_poll_seconds: float = Field(
        5.0, gt=0, description="How often to look for a new model when notifications fail."
    )
    watch_heartbeat_seconds: float = Field(
        15.0, ge=0.1, le=3600, description="How often callers that watch the policy hear from us."
    )
    watch_stall_seconds: float = Field(
        30.0,
        gt=0,
        description="A caller that watches and takes nothing of what it is sent for so long is cut "
        "off.",
    )
    profile_wait_seconds: float = Field(
        0.25,
        gt=0,
        le=60,
        description="How long a decision waits for a stored profile that is not in memory; then "
        "the rules decide. Twice as long where the connection to the database hangs.",
    )
    profile_cache_size: int = Field(100_000, ge=1, description="Stored profiles kept in memory.")
    profile_cache_seconds: float = Field(
        300.0, gt=0, description="How long a stored profile is used before it is read again."
    )
    retention_weeks: int = Field(
        26, ge=1, le=1040, description="Interactions are dropped after this many weeks."
    )
    retention_versions: int = Field(
        100,
        ge=0,
        description="Model versions that are kept, the newest; besides them those in use: served, "
        "led to by rollbacks, waiting, shadowed or trained on. 0: all.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of Prometheus metrics over HTTP; with workers the first one's, and the "
        "next ports are the others'. Absent: none.",
    )
    tracing: Literal["off", "on"] = Field(
        "off",
        description="OpenTelemetry traces of calls, SQL and training, sent where the OTEL_* "
        "variables say; needs the extra otel.",
    )
    lame_duck_seconds: float = Field(
        1.0,
        ge=0,
        description="How long calls are still taken after SIGTERM, while health already says "
        "NOT_SERVING, so that callers turn to other replicas.",
    )
    drain_seconds: float = Field(
        10.0, ge=0, description="How long calls under way may take after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severity that is logged."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Form of the log lines; auto is console on a terminal, json elsewhere."
    )

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        """Returns the host without brackets."""
        bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
        try:
            # Only a numeric IPv6 address has colons.
            if not bare or ":" in bare or bare != value:
                IPv6Address(bare)
        except ValueError:
            raise ValueError("must be an address or a name, without a port") from None
        return bare

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        # Here, since drivers quote what they cannot read, which may be part of a password.
        if value is not None:
            parse_database_url(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.metrics_port is not None and self.metrics_port + self.workers - 1 > 65535:
            raise ValueError("metrics_port leaves no port above it for every worker")
        return self

    @model_validator(mode="after")
    def _check_data_dir(self) -> Self:
        # Between the double quotes of a shell, by which Postgres starts its server, these are not
        # themselves.
        if self.database_url is None and set('"$`\\') & set(str(self.data_dir.absolute())):
            raise ValueError(f'data_dir, {self.data_dir.absolute()}, must not have any of " $ ` \\')
        return self

    def checked_database_url(self) -> DatabaseUrl | None:
        """Returns the URL of the database as the driver takes it; None for the embedded one."""
        if self.database_url is None:
            return None
        return parse_database_url(self.database_url.get_secret_value())

    def served_exploration(self) -> Exploration:
        """Returns the configured exploration."""
        named = {"off": OFF, "schedule": SCHEDULE, "posterior": POSTERIOR}
        if isinstance(self.exploration, str):
            return named[self.exploration]
        return Exploration(float(self.exploration))

    @property
    def retention(self) -> timedelta:
        """The age at which interactions are dropped."""
        return timedelta(weeks=self.retention_weeks)
