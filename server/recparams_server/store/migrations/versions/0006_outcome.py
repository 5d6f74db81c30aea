"""What became of a run's version has a column of its own: every run with a result has completed."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE system_tasks ADD COLUMN outcome text CHECK (outcome IN (
        'activated', 'started', 'waiting', 'superseded', 'refused', 'stored', 'no_change'
    ))
    """,
    """
    COMMENT ON COLUMN system_tasks.outcome IS
        'what became of the version of a completed training run; null of any other'
    """,
    """
    UPDATE system_tasks SET
        outcome = CASE
            WHEN status = 'gated' THEN 'refused'
            WHEN metadata->'training'->>'model_version' IS NULL THEN 'no_change'
            WHEN (metadata->'training'->>'served_percent')::float8 = 100 THEN 'activated'
            WHEN metadata->'training' ? 'served_percent' THEN 'started'
            ELSE 'stored'
        END,
        metadata = jsonb_set(metadata, '{training,outcome_reason}', to_jsonb(error)),
        error = '',
        status = 'completed'
    WHERE task_name = 'rl_training' AND status IN ('completed', 'gated')
    """,
    "ALTER TABLE system_tasks DROP CONSTRAINT system_tasks_status_check",
    """
    ALTER TABLE system_tasks
        ADD CONSTRAINT system_tasks_status_check
            CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
        ADD CONSTRAINT system_tasks_outcome_of_completed
            CHECK (outcome IS NULL OR status = 'completed')
    """,
)


def upgrade() -> None:
    """Adds the outcome, and turns the status gated into completed."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would forget what became of the versions."""
    raise NotImplementedError("restore a backup instead")
