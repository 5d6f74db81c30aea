"""Versions can be deleted, while what was served when stays on record by their numbers."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE model_versions DROP CONSTRAINT model_versions_parent_version_fkey",
    """
    ALTER TABLE model_activations
        DROP CONSTRAINT model_activations_version_fkey,
        DROP CONSTRAINT model_activations_baseline_fkey
    """,
    "ALTER TABLE shadows DROP CONSTRAINT shadows_version_fkey",
)


def upgrade() -> None:
    """Lets numbers of versions stand for versions that are no more."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: versions that are named may be gone."""
    raise NotImplementedError("restore a backup instead")
