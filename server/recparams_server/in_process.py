"""A server within another program's process, for the tests of that program."""

import asyncio
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recparams_client import RecParamsClient
from recparams_server.app import App
from recparams_server.settings import Settings
from recparams_server.store.database import database_url
from recparams_server.store.embedded import stop_postgres

START_SECONDS = 120.0
"""Time to start, on a machine many times slower than ours."""
STOP_SECONDS = 30.0


@contextmanager
def running(folder: Path, **settings: Any) -> Iterator[tuple[str, str]]:
    """Runs a server on a free port and an embedded Postgres, within a with statement.

    It has an event loop and a thread of its own. What is recorded can be trained at once.

    Args:
        folder: of its database, which is stopped at the end and left there.
        settings: of the server, by name.

    Yields:
        (host:port, the admin key), when it serves.

    Raises:
        pydantic.ValidationError: a setting is wrong.
        StartError: it cannot start.
        RecParamsError: it did not come to serve in time.
    """
    key = secrets.token_urlsafe(24)
    given = {
        "host": "127.0.0.1",
        "port": 0,
        # Whatever the environment says: no test writes to a database that somebody else needs.
        "database_url": None,
        "data_dir": folder,
        "admin_key": key,
        "settling_seconds": 0.0,
        "lame_duck_seconds": 0.0,
        **settings,
    }
    settled = Settings(**given)

    def run(work: Any, seconds: float) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(seconds)

    async def start() -> App:
        app = App(settled)
        await app.start()
        return app

    # Before gRPC has threads, of which a fork takes no notice.
    database_url(settled)
    app = None
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="recparams-server", daemon=True)
    thread.start()
    try:
        app = run(start(), START_SECONDS)
        address = f"127.0.0.1:{app.port}"
        with RecParamsClient(address) as client:
            client.wait_for_ready(START_SECONDS)
        yield address, key
    finally:
        if app is not None:
            run(app.stop(), STOP_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_SECONDS)
        loop.close()
        stop_postgres(folder / "postgres")
