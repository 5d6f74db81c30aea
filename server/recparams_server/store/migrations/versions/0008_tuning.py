"""What the last tuning found."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE tuning (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        found bytea NOT NULL
    )
    """,
    "COMMENT ON TABLE tuning IS 'the newest recparams.v1.Tuning'",
)


def upgrade() -> None:
    """Adds the last tuning."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drops it."""
    op.execute("DROP TABLE tuning")
