"""Ids of stored interactions are kept as hashes, which take half as much room and time."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE FUNCTION interaction_key(interaction_id text) RETURNS uuid
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
        SELECT encode(substring(sha256(convert_to(interaction_id, 'UTF8')) FOR 16), 'hex')::uuid
    $$
    """,
    "ALTER TABLE interaction_keys DROP CONSTRAINT interaction_keys_pkey",
    """
    ALTER TABLE interaction_keys
        ALTER COLUMN interaction_id TYPE uuid USING interaction_key(interaction_id)
    """,
    "ALTER TABLE interaction_keys RENAME COLUMN interaction_id TO key",
    "ALTER TABLE interaction_keys ADD PRIMARY KEY (key)",
    """
    COMMENT ON COLUMN interaction_keys.key IS
        'interaction_key() of an interaction_id: the first half of its SHA-256'
    """,
)


def upgrade() -> None:
    """Replaces the ids by their hashes."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: hashes do not give the ids back."""
    raise NotImplementedError("restore a backup instead")
