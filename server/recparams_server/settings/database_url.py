"""The database's URL: what libpq takes in one, made into what the driver takes, or refused.

Errors quote nothing of a URL but names of parameters, since any part may be of a password.
"""

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

FORM = "must be postgresql://user:password@host:port/name"
ENCODE = (
    f"{FORM}, with special characters of user, password and name written as %2F and the like "
    "(% itself as %25)"
)

_TAKEN = {
    *("host", "port", "dbname", "database", "user", "password", "passfile", "service"),
    *("sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
    *("application_name", "options", "target_session_attrs"),
}
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_DROPPED = {
    *("connect_timeout", "tcp_user_timeout", "client_encoding", "fallback_application_name"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("channel_binding", "load_balance_hosts", "gssencmode", "gssdelegation"),
    *("sslcompression", "sslsni", "sslcertmode"),
}
_WRITING = ("any", "primary", "read-write")
_NAME = re.compile(r"[a-z_]{1,40}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class DatabaseUrl:
    """A checked URL.

    Attributes:
        url: in the form that the driver takes.
        unused: names of the parameters that were left out of it.
    """

    url: str
    unused: tuple[str, ...] = ()


def parse_database_url(text: str) -> DatabaseUrl:
    """Returns a URL in the form that the driver takes.

    Several hosts are tried in their order until one takes writes.

    Raises ValueError, which does not quote it, if the URL can never work.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if scheme not in ("postgresql", "postgres") or not separator:
        raise ValueError(FORM)
    match = re.match(r"([^/?]*)([^?]*)\??(.*)", rest, re.DOTALL)
    assert match is not None  # noqa: S101 - it matches every text
    authority, path, query = match.groups()
    user, _, hosts = authority.rpartition("@")
    if (
        re.search(r"[\s\x00-\x1f#]", text)
        or _BAD_ESCAPE.search(text)
        or re.search(r"[@\[\]]|[^\x21-\x7e]", user)
        or "@" in path
    ):
        raise ValueError(ENCODE)
    parameters = _parameters(query)
    several = _check_hosts(hosts) or "," in parameters.get("host", "")
    used, unused = _used(parameters, several)
    encoded = "&".join(f"{name}={quote(value, safe='/,')}" for name, value in used.items())
    return DatabaseUrl(f"postgresql://{authority}{path}?{encoded}".rstrip("?"), unused)


def _check_hosts(hosts: str) -> bool:
    """Returns True if there are several. Raises ValueError for one that cannot be."""
    found = hosts.split(",") if hosts else []
    for host in found:
        match = _HOST.fullmatch(host)
        if match is None or not host.isascii() or int(match[2] or 1) not in range(1, 65536):
            raise ValueError(f"has a host or port that cannot be: {ENCODE}")
    return len(found) > 1


def _parameters(query: str) -> dict[str, str]:
    found = {}
    for pair in query.split("&") if query else ():
        name, separator, value = pair.partition("=")
        known = name in _TAKEN or name in _DROPPED or name == "ssl"
        if not separator or not _NAME.fullmatch(name) or ("@" in query and not known):
            raise ValueError(f"has parameters that are not name=value: {ENCODE}")
        if not known:
            raise ValueError(
                f"has a parameter that is not taken here, {name}; a setting of Postgres is written "
                "options=-c%20name%3Dvalue"
            )
        found[name] = unquote(value)
    return found


def _used(given: dict[str, str], several: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """Returns the parameters for the driver, and the names of those left out."""
    used = {name: value for name, value in given.items() if name in _TAKEN and value}
    if given.get("ssl", "true") != "true":
        raise ValueError("has ssl, which can be true: sslmode says more")
    if "ssl" in given:
        used.setdefault("sslmode", "require")
    if given.get("gssencmode") == "require":
        raise ValueError("has gssencmode=require, and GSSAPI encryption is not to be had here")
    attributes = used.pop("target_session_attrs", "any")
    if attributes not in _WRITING:
        raise ValueError(
            f"has target_session_attrs, which can be {', '.join(_WRITING)}: the database is written"
        )
    if several:
        used["target_session_attrs"] = "primary" if attributes == "primary" else "read-write"
    if "host" in used:
        used["host"] = ",".join(map(_in_brackets, used["host"].split(",")))
    for port in used.get("port", "1").split(","):
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError("has a port that is no number from 1 to 65535")
    _check_tls(used)
    return used, tuple(name for name in given if name in _DROPPED)


def _in_brackets(host: str) -> str:
    if not host:
        raise ValueError("has an empty host in the parameter host")
    return f"[{host}]" if ":" in host and host[0] not in "/[" else host


def _check_tls(used: dict[str, str]) -> None:
    """Raises ValueError for a TLS mode or file that there is not."""
    if used.get("sslrootcert") == "system":
        used["sslrootcert"] = ssl.get_default_verify_paths().cafile or ""
        used.setdefault("sslmode", "verify-full")
    if used.get("sslmode", "prefer") not in _SSL_MODES:
        raise ValueError(f"has sslmode, which can be {', '.join(_SSL_MODES)}")
    for name in _FILES:
        if name in used and not Path(used[name]).is_file():
            raise ValueError(f"has {name}, which is no file here")
