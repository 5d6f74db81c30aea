"""People who are always served the rules, and what learning is worth against them."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE model_activations ADD COLUMN holdback_percent double precision NOT NULL DEFAULT 0
        CHECK (holdback_percent BETWEEN 0 AND 100)
    """,
    """
    COMMENT ON COLUMN model_activations.holdback_percent IS
        'share of all people who are served the rules; the other shares are of the rest'
    """,
    """
    CREATE TABLE learning_gain (
        only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
        measured_at timestamptz NOT NULL DEFAULT now(),
        gain bytea
    )
    """,
    """
    COMMENT ON TABLE learning_gain IS
        'the newest recparams.v1.LearningGain; null where nobody could be compared'
    """,
)


def upgrade() -> None:
    """Adds the holdback."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would forget who was held back when."""
    raise NotImplementedError("restore a backup instead")
