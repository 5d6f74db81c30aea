"""Gates, rollouts, experiments, shadowing and objectives."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE interactions ADD COLUMN activation_id bigint",
    """
    COMMENT ON COLUMN interactions.activation_id IS
        'the model_activations row in force at the decision; null without a decision token'
    """,
    """
    CREATE INDEX interactions_activation ON interactions (activation_id)
        WHERE activation_id IS NOT NULL
    """,
    """
    ALTER TABLE model_versions
        ADD COLUMN objectives jsonb NOT NULL
            DEFAULT '{"engagement": 1.0, "diversity": 0.0, "novelty": 0.0}',
        ADD COLUMN main_line boolean NOT NULL DEFAULT true,
        ADD COLUMN trained_through bytea,
        ADD COLUMN halted_at timestamptz,
        ADD COLUMN halted_reason text NOT NULL DEFAULT ''
    """,
    "UPDATE model_versions SET main_line = false WHERE origin = 'imported'",
    """
    COMMENT ON COLUMN model_versions.trained_through IS
        'whose interactions up to which id it was trained on, compressed; null where not known'
    """,
    """
    ALTER TABLE model_activations
        ADD COLUMN percent double precision NOT NULL DEFAULT 100 CHECK (percent BETWEEN 0 AND 100),
        ADD COLUMN baseline bigint REFERENCES model_versions,
        ADD COLUMN rule_based_percent double precision NOT NULL DEFAULT 0
            CHECK (rule_based_percent BETWEEN 0 AND 100),
        ADD COLUMN salt text NOT NULL DEFAULT '',
        ADD COLUMN experiment_id bigint REFERENCES model_activations,
        ADD COLUMN automatic boolean NOT NULL DEFAULT false,
        ADD CHECK (percent + rule_based_percent <= 100)
    """,
    """
    COMMENT ON COLUMN model_activations.experiment_id IS
        'first activation of the comparison this one belongs to; null where all are served alike'
    """,
    """
    CREATE INDEX model_activations_experiment ON model_activations (experiment_id)
        WHERE experiment_id IS NOT NULL
    """,
    """
    CREATE TABLE shadows (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        version bigint REFERENCES model_versions,
        since timestamptz NOT NULL DEFAULT now(),
        decisions bigint NOT NULL DEFAULT 0,
        agreements bigint NOT NULL DEFAULT 0
    )
    """,
    """
    COMMENT ON TABLE shadows IS
        'the row with the highest id says what to shadow; a null version is nothing'
    """,
    """
    CREATE TRIGGER shadows_notify AFTER INSERT ON shadows
        FOR EACH ROW EXECUTE FUNCTION notify_model_activation()
    """,
    "ALTER TABLE system_tasks DROP CONSTRAINT system_tasks_status_check",
    """
    ALTER TABLE system_tasks ADD CONSTRAINT system_tasks_status_check
        CHECK (status IN ('pending', 'running', 'completed', 'gated', 'failed', 'cancelled'))
    """,
    "DROP VIEW interactions_named",
    """
    CREATE VIEW interactions_named AS
    SELECT
        i.id, i.interaction_id, u.user_id, i.occurred_at, i.recorded_at,
        (ARRAY['music', 'video', 'game'])[i.content_type] AS content_type,
        (ARRAY['neutral', 'happy', 'sad', 'anxious', 'calm', 'relaxed', 'energetic', 'stressed'])
            [i.mood] AS mood,
        (ARRAY['morning', 'afternoon', 'evening', 'night'])[i.time_of_day] AS time_of_day,
        (ARRAY['low', 'medium', 'high'])[i.action / 9 + 1] AS energy,
        (ARRAY['focused', 'balanced', 'diverse'])[i.action / 3 % 3 + 1] AS diversity,
        (ARRAY['familiar', 'mixed', 'exploratory'])[i.action % 3 + 1] AS novelty,
        i.reactions & 1 > 0 AS liked,
        i.reactions & 2 > 0 AS disliked,
        i.reactions & 4 > 0 AS completed,
        i.reactions & 8 > 0 AS skipped,
        i.reactions & 16 > 0 AS shared,
        i.completion_rate, i.mood_change,
        (i.action / 3 % 3) / 2.0 AS diversity_objective,
        (i.action % 3) / 2.0 AS novelty_objective,
        i.openness, i.conscientiousness, i.extraversion, i.agreeableness, i.neuroticism,
        i.propensity, i.model_version,
        (ARRAY['rl', 'rule_based', 'previous'])[i.policy_arm] AS policy_arm,
        a.experiment_id, i.decision_id, i.decided_at,
        i.id <= u.trained_through AS trained
    FROM interactions i
    JOIN users u USING (user_key)
    LEFT JOIN model_activations a ON a.id = i.activation_id
    """,
)


def upgrade() -> None:
    """Adds what rollouts need to the first schema."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would drop what arms people were in."""
    raise NotImplementedError("restore a backup instead")
