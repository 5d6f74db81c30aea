"""Settings: from the command line, then RECPARAMS_* variables, then a TOML file, then defaults."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from rl.gates import Thresholds
from rl.hyperparameters import Hyperparameters
from rl.objectives import Objectives
from rl.reward import RewardWeights
from rl.smoothing import Smoothing
from rl.state import CONTENT_TYPES, MOODS, TIMES_OF_DAY, StateSpace
from server.callers import Caller, key_digest, parse_callers, parse_hash
from server.schedule import Schedule, parse

WELL_KNOWN_ADMIN_KEYS = frozenset({"admin-dev-key-change-in-production", "your-key"})
Names = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """Everything that can be set. Raises pydantic.ValidationError on a value out of range."""

    model_config = SettingsConfigDict(
        env_prefix="RECPARAMS_", frozen=True, extra="forbid", populate_by_name=True
    )

    environment: Literal["development", "production"] = Field(
        "development",
        description="In development a missing admin key is made up at every start; in production "
        "the server refuses to start without one.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(50051, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Server processes that share the port, for machines with more than one CPU "
        "core; above 1 a supervisor restarts one that dies.",
    )
    database_url: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("database_url", "RECPARAMS_DATABASE_URL", "DATABASE_URL"),
        description="Postgres 14 or newer, as postgresql://user:password@host:port/name. Absent: "
        "an embedded Postgres in the data directory. DATABASE_URL is read too.",
    )
    data_dir: Path = Field(
        Path(".recparams"),
        description="Where the embedded Postgres and a development admin key are kept.",
    )
    database_pool_size: int = Field(8, ge=2, le=200, description="Most database connections.")
    admin_key: SecretStr | None = Field(
        None,
        description="What callers of training and model RPCs send as x-admin-key; 16 characters "
        "or more outside development.",
    )
    admin_key_hashes: Names = Field(
        (),
        description="Instead of admin_key or beside it: hashes of admin keys, all of them valid, "
        "comma separated (recparams new-key makes key and hash).",
    )
    authorization: Literal["admin_only", "keys"] = Field(
        "admin_only",
        description="What asks who calls: admin_only, the RPCs that train and administer, for the "
        "admin key; keys, every RPC but health and reflection, for a caller with the role.",
    )
    callers: Names = Field(
        (),
        description="Callers for authorization keys, comma separated: name:role+role:sha256:HEX "
        "for a key sent as x-api-key, or name:role+role:cn=NAME for a client certificate; the "
        "roles are recommend, record, train and administer.",
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the server's certificate chain, read again when it changes. "
        "Absent: plain text.",
    )
    tls_key: Path | None = Field(None, description="PEM file of its unencrypted key.")
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file of certificates that clients' certificates must lead to (mTLS). "
        "Absent: clients need none.",
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024, ge=64 * 1024, le=1024**3, description="Largest message that is read."
    )
    max_concurrent_calls: int = Field(
        10_000,
        ge=0,
        description="Calls and open streams at a time, for each worker; those above are refused "
        "with RESOURCE_EXHAUSTED. 0: no limit.",
    )
    token_key: SecretStr | None = Field(
        None,
        description="Secret that signs decision tokens, 32 characters or more. Absent: one kept "
        "in the database, made at the first start.",
    )
    token_keys_before: SecretStr | None = Field(
        None,
        description="Other keys whose decision tokens are still accepted, comma separated.",
    )
    token_max_age_days: float = Field(
        30.0, gt=0, description="Decision tokens older than this are refused, in days."
    )

    exploration: Literal["off", "schedule"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "off",
        description="Probability of a random action while serving: off (0), schedule (what the "
        "served model version asks for), or a number from 0 to 1.",
    )
    bins: int = Field(5, ge=1, le=10, description="Bins per personality trait.")
    content_types: Names = Field(CONTENT_TYPES, description="Content types, comma separated.")
    moods: Names = Field(MOODS, description="Moods, comma separated.")
    times_of_day: Names = Field(TIMES_OF_DAY, description="Times of day, comma separated.")

    reward_like: float = Field(1.0, description="Reward of a like.")
    reward_dislike: float = Field(-1.0, description="Reward of a dislike.")
    reward_complete: float = Field(0.5, description="Reward of a completion.")
    reward_skip: float = Field(-0.3, description="Reward of a skip.")
    reward_share: float = Field(0.8, description="Reward of a share.")
    reward_impression: float = Field(0.0, description="Reward of an impression.")
    reward_completion_rate: float = Field(0.5, description="Factor on the completion rate, 0 to 1.")
    reward_mood_change: float = Field(0.5, description="Factor on the mood change, -1 to 1.")

    objective_engagement: float = Field(
        1.0, description="Weight of the reactions' reward among the objectives."
    )
    objective_diversity: float = Field(
        0.0, description="Reward of the most diverse recommendation over the most focused."
    )
    objective_novelty: float = Field(
        0.0, description="Reward of the most exploratory recommendation over the most familiar."
    )

    learning_rate: float = Field(0.1, description="Step size of an update, above 0 and up to 1.")
    discount_factor: float = Field(
        0.95, description="Value of the next step's reward, from 0 up to but not 1."
    )
    exploration_rate: float = Field(
        0.3, description="Exploration of the schedule before any training, 0 to 1."
    )
    exploration_decay: float = Field(
        0.995, description="Factor on it for each thousand interactions trained."
    )
    min_exploration_rate: float = Field(0.05, description="Its floor, 0 to 1.")
    session_gap_seconds: float = Field(1800.0, description="Longest pause within one session.")
    settling_seconds: float | None = Field(
        None,
        description="Rest of an interaction before it is trained. Absent: the session gap.",
    )
    days_back: int = Field(7, ge=1, le=3650, description="Default window of a training run, days.")
    min_interactions_per_user: int = Field(
        5, ge=1, description="People with fewer untrained interactions wait for a later run."
    )
    schedule: str | None = Field(
        None,
        description="When to train without being asked: a cron expression (0 1 * * 1 is Mondays at "
        "01:00) or an interval (6h; units s, m, h and d). Absent: never.",
    )
    schedule_time_zone: str = Field(
        "UTC", description="Time zone of the cron expression, such as Europe/Berlin."
    )
    schedule_grace_seconds: float = Field(
        3600.0,
        ge=1,
        description="How late a scheduled run may still start where the servers were down or "
        "another run was under way; later it is left out.",
    )
    training_threads: int = Field(
        max(1, (os.cpu_count() or 1) - 1), ge=1, le=256, description="Threads of a training run."
    )
    kernel_width: float = Field(
        20.0, gt=0, description="How far a state borrows from similar people, in trait points."
    )
    shrinkage: float = Field(
        8.0, gt=0, description="Visits that what is borrowed is worth against a state's own."
    )
    rule_bonus: float = Field(
        0.1, ge=0, description="Advantage of the rules' action where there is no data, in reward."
    )

    gates: Literal["enforce", "report"] = Field(
        "enforce",
        description="Whether a version that does not pass the gates is held back, or only noted.",
    )
    gate_interactions: int = Field(
        1000, ge=0, description="Least number of interactions behind a version that is served."
    )
    gate_average_reward: float = Field(
        0.3, description="What the average reward of the interactions just trained must exceed."
    )
    gate_improvement_tolerance: float = Field(
        0.1,
        ge=0,
        description="How much worse than the active policy, in reward, a version may be at the "
        "lower confidence bound of the difference on interactions it had not seen.",
    )
    gate_confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence of that lower bound (one-sided)."
    )
    gate_q_bound_factor: float = Field(
        1.0, gt=0, description="Largest |Q| as a multiple of its theoretical bound."
    )
    gate_coverage_share: float = Field(
        0.5, ge=0, le=1, description="Least share of the active version's visited states."
    )
    holdout_share: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Latest share of a run's interactions on which a version is evaluated before "
        "it is trained on them too.",
    )
    rollout: Literal["off", "staged"] = Field(
        "off",
        description="Whether a version that passes the gates is served to everybody, or to the "
        "first step of the ramp.",
    )
    rollout_steps: str = Field(
        "canary=10,half=50,full=100",
        description="Steps of the ramp, name=percent, comma separated, rising to 100.",
    )
    watch_seconds: float = Field(
        30.0,
        gt=0,
        description="How often the arms of a rollout are compared; a version that is worse is "
        "taken back.",
    )
    experiment_alpha: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Most probability that a comparison of arms ever errs.",
    )
    experiment_burn_in: int = Field(
        100, ge=2, description="People in each arm before a comparison says anything."
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of Prometheus metrics over HTTP; with workers the first one's, and the "
        "next ports are the others'. Absent: none.",
    )

    reload_poll_seconds: float = Field(
        5.0, gt=0, description="How often to look for a new model when notifications fail."
    )
    profile_cache_size: int = Field(100_000, ge=1, description="Stored profiles kept in memory.")
    profile_cache_seconds: float = Field(
        300.0, gt=0, description="How long a stored profile is used before it is read again."
    )
    retention_weeks: int = Field(
        26, ge=1, le=1040, description="Interactions are dropped after this many weeks."
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

    @field_validator(
        "database_url",
        "admin_key",
        "token_key",
        "token_keys_before",
        "tls_certificate",
        "tls_key",
        "tls_client_ca",
        "schedule",
        mode="before",
    )
    @classmethod
    def _empty_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator(
        "content_types", "moods", "times_of_day", "admin_key_hashes", "callers", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.space()
        self.hyperparameters()
        self.reward_weights()
        self.objectives()
        self.steps()
        self.training_schedule()
        if self.token_key is not None and len(self.token_key.get_secret_value()) < 32:
            raise ValueError("token_key must have 32 characters or more")
        if any(len(key) < 32 for key in self.earlier_token_keys()):
            raise ValueError("token_keys_before must have 32 characters or more each")
        self._check_access()
        if self.metrics_port is not None and self.metrics_port + self.workers - 1 > 65535:
            raise ValueError("metrics_port leaves no port above it for every worker")
        return self

    def _check_access(self) -> None:
        """Raises ValueError where nobody, or too many, could call."""
        digests, callers = self.admin_digests(), self.known_callers()
        if callers and self.authorization != "keys":
            raise ValueError("callers need authorization keys")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key need each other")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.tls_client_ca is None and any(caller.common_name for caller in callers):
            raise ValueError("callers with cn= need tls_client_ca")
        if self.environment == "development":
            return
        if not digests:
            raise ValueError("admin_key is required outside development, or admin_key_hashes")
        short = self.admin_key is not None and len(self.admin_key.get_secret_value()) < 16
        if short or not set(digests).isdisjoint(map(key_digest, WELL_KNOWN_ADMIN_KEYS)):
            raise ValueError(
                "admin_key is a well-known or short one: outside development it needs 16 "
                "characters or more that nobody else knows"
            )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("RECPARAMS_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, Path(file)),) if file else ()
        return init_settings, env_settings, *toml

    def admin_digests(self) -> tuple[bytes, ...]:
        """Digests of the admin keys that are valid."""
        plain = [] if self.admin_key is None else [key_digest(self.admin_key.get_secret_value())]
        try:
            return (*plain, *map(parse_hash, self.admin_key_hashes))
        except ValueError as failure:
            raise ValueError(f"admin_key_hashes {failure}") from None

    def known_callers(self) -> tuple[Caller, ...]:
        """The configured callers."""
        try:
            return parse_callers(self.callers)
        except ValueError as failure:
            raise ValueError(f"callers: {failure}") from None

    def earlier_token_keys(self) -> tuple[bytes, ...]:
        """Keys whose tokens are accepted beside those of the token key."""
        text = self.token_keys_before.get_secret_value() if self.token_keys_before else ""
        return tuple(key.strip().encode() for key in text.split(",") if key.strip())

    def space(self) -> StateSpace:
        """The configured state space."""
        return StateSpace(self.bins, self.content_types, self.moods, self.times_of_day)

    def hyperparameters(self) -> Hyperparameters:
        """The configured settings of the learner."""
        return Hyperparameters(
            learning_rate=self.learning_rate,
            discount_factor=self.discount_factor,
            exploration_rate=self.exploration_rate,
            exploration_decay=self.exploration_decay,
            min_exploration_rate=self.min_exploration_rate,
            session_gap_seconds=self.session_gap_seconds,
            settling_seconds=self.settling_seconds,
        )

    def reward_weights(self) -> RewardWeights:
        """The configured reward."""
        return RewardWeights(
            like=self.reward_like,
            dislike=self.reward_dislike,
            complete=self.reward_complete,
            skip=self.reward_skip,
            share=self.reward_share,
            impression=self.reward_impression,
            completion_rate=self.reward_completion_rate,
            mood_change=self.reward_mood_change,
        )

    def objectives(self) -> Objectives:
        """The configured weights of the objectives."""
        return Objectives(
            self.objective_engagement, self.objective_diversity, self.objective_novelty
        )

    def thresholds(self) -> Thresholds:
        """What the gates hold a version to."""
        return Thresholds(
            interactions=self.gate_interactions,
            average_reward=self.gate_average_reward,
            improvement_tolerance=self.gate_improvement_tolerance,
            q_bound_factor=self.gate_q_bound_factor,
            coverage_share=self.gate_coverage_share,
        )

    def steps(self) -> dict[str, float]:
        """Steps of the ramp, by name, rising."""
        try:
            pairs = (part.split("=") for part in self.rollout_steps.split(","))
            steps = {name.strip(): float(percent) for name, percent in pairs}
        except ValueError:
            raise ValueError("rollout_steps must be as in canary=10,half=50,full=100") from None
        values = list(steps.values())
        if values != sorted(set(values)) or not values[0] > 0 or values[-1] != 100:
            raise ValueError("rollout_steps must rise from above 0 to 100")
        if "" in steps or "next" in steps:
            raise ValueError('rollout_steps need names, and "next" is not one of them')
        return steps

    def training_schedule(self) -> Schedule | None:
        """When training runs by itself, or None."""
        return None if self.schedule is None else parse(self.schedule, self.schedule_time_zone)

    def smoothing(self) -> Smoothing:
        """The configured smoothing."""
        return Smoothing(self.kernel_width, self.shrinkage, self.rule_bonus)

    def to_environment(self, database_url: str) -> dict[str, str]:
        """These settings as RECPARAMS_* variables, for a child process on the same database."""
        variables = {}
        for name, value in self.model_dump(exclude_none=True).items():
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            elif isinstance(value, tuple):
                value = ",".join(value)
            variables[f"RECPARAMS_{name.upper()}"] = str(value)
        return {**variables, "RECPARAMS_DATABASE_URL": database_url}

    @property
    def retention(self) -> timedelta:
        """How long interactions are kept."""
        return timedelta(weeks=self.retention_weeks)
