"""Secrets that replicas share and nobody has to configure."""

import secrets

from recparams_server.store.database import Pool

SECRET_BYTES = 32


async def shared_secret(pool: Pool, name: str) -> bytes:
    """Returns the secret of a name, 32 bytes; the first replica to ask makes it."""
    await pool.execute(
        "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        name,
        secrets.token_bytes(SECRET_BYTES),
    )
    return bytes(await pool.fetchval("SELECT value FROM secrets WHERE name = $1", name))
