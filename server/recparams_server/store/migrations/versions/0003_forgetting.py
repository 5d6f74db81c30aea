"""Forgetting a person: whoever makes people takes the lock that deleting them waits for."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Has writers of interactions and profiles, who begin with users, hold the insert lock."""
    op.execute(
        """
        CREATE TRIGGER users_insert_lock BEFORE INSERT ON users
            FOR EACH STATEMENT EXECUTE FUNCTION lock_interaction_insert()
        """
    )


def downgrade() -> None:
    """Drops the trigger."""
    op.execute("DROP TRIGGER users_insert_lock ON users")
