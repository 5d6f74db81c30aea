"""What a development server leaves for the command line beside it: its address and admin key."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from pydantic import SecretStr

from recparams_server.contract.development_files import ADDRESS_FILE, ADMIN_KEY_FILE
from recparams_server.settings import Settings

log = structlog.get_logger()


def with_admin_key(settings: Settings) -> Settings:
    """Returns settings with an admin key: if they have none, a new one, written for the CLI."""
    if settings.admin_digests():
        return settings
    key = secrets.token_urlsafe(24)
    folder = settings.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ADMIN_KEY_FILE
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_text(key)
    log.info("made up an admin key for this run", file=str(file))
    return settings.model_copy(update={"admin_key": SecretStr(key)})


@contextmanager
def findable(settings: Settings, port: int) -> Iterator[None]:
    """Keeps the address in the data folder for a while, if the database is the embedded one.

    Args:
        settings: of the server.
        port: that it listens on.
    """
    if settings.database_url is not None:
        yield
        return
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    file = settings.data_dir / ADDRESS_FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{host}:{port}")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
