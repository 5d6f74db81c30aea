"""What no run has trained stays due, however late it happened."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

STATEMENTS = (
    "ALTER TABLE users ADD COLUMN has_waiting boolean NOT NULL DEFAULT false",
    """
    COMMENT ON COLUMN users.has_waiting IS
        'a run that read all that is due left some of this person''s interactions for a later one'
    """,
    "CREATE INDEX users_waiting ON users (user_key) WHERE has_waiting",
    """
    CREATE TABLE interactions_left_out (
        id bigint PRIMARY KEY,
        occurred_at timestamptz NOT NULL,
        user_key bigint NOT NULL REFERENCES users ON DELETE CASCADE
    )
    """,
    """
    COMMENT ON TABLE interactions_left_out IS
        'interactions up to their person''s trained_through that a window left out: still due'
    """,
    "CREATE INDEX interactions_left_out_user ON interactions_left_out (user_key)",
    """
    CREATE OR REPLACE VIEW interactions_named AS
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
        i.id <= u.trained_through
            AND NOT EXISTS (SELECT FROM interactions_left_out AS l WHERE l.id = i.id) AS trained
    FROM interactions i
    JOIN users u USING (user_key)
    LEFT JOIN model_activations a ON a.id = i.activation_id
    """,
)


def upgrade() -> None:
    """Adds who has interactions waiting, and which a window left out."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would forget which interactions are still due."""
    raise NotImplementedError("restore a backup instead")
