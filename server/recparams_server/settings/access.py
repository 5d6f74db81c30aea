"""Settings of access: callers, TLS, limits and keys of tokens."""

from typing import Literal, Self

from pydantic import Field, model_validator

from recparams_server.settings.callers import Caller, key_digest, parse_callers, parse_hash
from recparams_server.settings.fields import Names, OptionalPath, Part, Secret

WELL_KNOWN_ADMIN_KEYS = frozenset({"admin-dev-key-change-in-production", "your-key"})


class AccessSettings(Part):
    """Settings of callers, TLS, limits and tokens."""

    environment: Literal["development", "production"] = Field(
        "development",
        description="In development a missing admin key is made up at every start; in production "
        "the server refuses to start without one.",
    )
    admin_key: Secret = Field(
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
    tls_certificate: OptionalPath = Field(
        None,
        description="PEM file of the server's certificate chain, read again when it changes. "
        "Absent: plain text.",
    )
    tls_key: OptionalPath = Field(None, description="PEM file of its unencrypted key.")
    tls_client_ca: OptionalPath = Field(
        None,
        description="PEM file of certificates that clients' certificates must lead to (mTLS). "
        "Absent: clients need none.",
    )
    max_message_bytes: int = Field(
        1088 * 1024,
        ge=64 * 1024,
        le=1024**3,
        description="Largest message that is read; no method takes more than the default.",
    )
    max_concurrent_calls: int = Field(
        10_000,
        ge=0,
        description="Calls and open streams at a time, for each worker; those above are refused "
        "with RESOURCE_EXHAUSTED. 0: no limit.",
    )
    max_streams: int = Field(
        2000,
        ge=1,
        description="Streams that watch the policy or a training run at a time, for each worker; "
        "those above are refused with RESOURCE_EXHAUSTED.",
    )
    max_streams_per_caller: int = Field(
        500,
        ge=1,
        description="The same of one caller (by its name, or by its address where everybody may "
        "call).",
    )
    max_calls_per_second: float = Field(
        0.0,
        ge=0,
        description="Calls a second of one caller (by its name, or by its address where "
        "everybody may call), for each worker; a second's worth may come at once. 0: no limit.",
    )
    call_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="Calls that take longer end with DEADLINE_EXCEEDED, whatever the caller's own "
        "deadline.",
    )
    long_call_timeout_seconds: float = Field(
        900.0, gt=0, description="The same for calls that evaluate, import or export."
    )
    max_connection_age_seconds: float = Field(
        0.0,
        ge=0,
        description="Connections older than this are ended in good order, so that clients find "
        "new replicas. 0: never.",
    )
    token_key: Secret = Field(
        None,
        description="Secret that signs decision tokens, 32 characters or more. Absent: one kept "
        "in the database, made at the first start.",
    )
    token_keys_before: Secret = Field(
        None,
        description="Other keys whose decision tokens are still accepted, comma separated.",
    )
    token_max_age_days: float = Field(
        30.0, gt=0, description="Decision tokens older than this are refused, in days."
    )

    @model_validator(mode="after")
    def _check_access(self) -> Self:
        digests, callers = self.admin_digests(), self.known_callers()
        if self.token_key is not None and len(self.token_key.get_secret_value().strip()) < 32:
            raise ValueError("token_key must have 32 characters or more")
        if any(len(key) < 32 for key in self.earlier_token_keys()):
            raise ValueError("token_keys_before must have 32 characters or more each")
        if callers and self.authorization != "keys":
            raise ValueError("callers need authorization keys")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key need each other")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.tls_client_ca is None and any(caller.common_name for caller in callers):
            raise ValueError("callers with cn= need tls_client_ca")
        if self.environment == "production":
            self._check_admin_keys(digests)
        return self

    def _check_admin_keys(self, digests: tuple[bytes, ...]) -> None:
        if not digests:
            raise ValueError("admin_key is required outside development, or admin_key_hashes")
        short = self.admin_key is not None and len(self.admin_key.get_secret_value().strip()) < 16
        if short or not set(digests).isdisjoint(map(key_digest, WELL_KNOWN_ADMIN_KEYS)):
            raise ValueError(
                "admin_key is a well-known or short one: outside development it needs 16 "
                "characters or more that nobody else knows"
            )

    def admin_digests(self) -> tuple[bytes, ...]:
        """Returns the SHA-256 digests of the valid admin keys."""
        plain = [] if self.admin_key is None else [key_digest(self.admin_key.get_secret_value())]
        try:
            return (*plain, *map(parse_hash, self.admin_key_hashes))
        except ValueError as failure:
            raise ValueError(f"admin_key_hashes {failure}") from None

    def known_callers(self) -> tuple[Caller, ...]:
        """Returns the configured callers."""
        try:
            return parse_callers(self.callers)
        except ValueError as failure:
            raise ValueError(f"callers: {failure}") from None

    def earlier_token_keys(self) -> tuple[bytes, ...]:
        """Returns the keys whose tokens are accepted beside those of the token key."""
        text = self.token_keys_before.get_secret_value() if self.token_keys_before else ""
        return tuple(key.strip().encode() for key in text.split(",") if key.strip())
