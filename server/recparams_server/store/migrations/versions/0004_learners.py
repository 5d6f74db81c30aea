"""Learners that keep no table, and policies of other kinds than one action a state."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Says of each version which kind its policy is, and keeps what learners have of their own."""
    op.execute(
        """
        ALTER TABLE model_versions
            ADD COLUMN policy_kind text NOT NULL DEFAULT 'greedy_table',
            ADD COLUMN learner bytea,
            ADD COLUMN learner_checksum text,
            ALTER COLUMN q_table DROP NOT NULL,
            ALTER COLUMN q_table_checksum DROP NOT NULL,
            ADD CHECK (q_table IS NOT NULL OR learner IS NOT NULL)
        """
    )


def downgrade() -> None:
    """Takes the columns away; refused while there are versions that need them."""
    op.execute(
        """
        ALTER TABLE model_versions
            ALTER COLUMN q_table SET NOT NULL,
            ALTER COLUMN q_table_checksum SET NOT NULL,
            DROP COLUMN learner,
            DROP COLUMN learner_checksum,
            DROP COLUMN policy_kind
        """
    )
