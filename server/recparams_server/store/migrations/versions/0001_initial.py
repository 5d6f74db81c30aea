"""Interactions, profiles, model versions, activations and the run log."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE users (
        user_key bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        user_id text NOT NULL UNIQUE,
        trained_through bigint NOT NULL DEFAULT 0
    )
    """,
    """
    COMMENT ON COLUMN users.trained_through IS
        'interactions of this person up to this id are in the newest trained model version'
    """,
    """
    CREATE TABLE personality_profiles (
        user_key bigint PRIMARY KEY REFERENCES users ON DELETE CASCADE,
        openness real NOT NULL CHECK (openness BETWEEN 0 AND 100),
        conscientiousness real NOT NULL CHECK (conscientiousness BETWEEN 0 AND 100),
        extraversion real NOT NULL CHECK (extraversion BETWEEN 0 AND 100),
        agreeableness real NOT NULL CHECK (agreeableness BETWEEN 0 AND 100),
        neuroticism real NOT NULL CHECK (neuroticism BETWEEN 0 AND 100),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE SEQUENCE interaction_id_seq AS bigint CACHE 1",
    """
    CREATE TABLE interactions (
        id bigint NOT NULL DEFAULT nextval('interaction_id_seq'),
        occurred_at timestamptz NOT NULL,
        recorded_at timestamptz NOT NULL DEFAULT now(),
        user_key bigint NOT NULL,
        interaction_id text NOT NULL,
        content_type smallint NOT NULL,
        mood smallint NOT NULL,
        time_of_day smallint NOT NULL,
        action smallint NOT NULL CHECK (action BETWEEN 0 AND 26),
        reactions smallint NOT NULL CHECK (reactions BETWEEN 0 AND 63),
        completion_rate real CHECK (completion_rate BETWEEN 0 AND 1),
        mood_change real CHECK (mood_change BETWEEN -1 AND 1),
        openness real,
        conscientiousness real,
        extraversion real,
        agreeableness real,
        neuroticism real,
        propensity real,
        model_version bigint,
        policy_arm smallint,
        source smallint,
        decision_id bigint,
        decided_at timestamptz,
        PRIMARY KEY (id, occurred_at)
    ) PARTITION BY RANGE (occurred_at)
    """,
    "CREATE INDEX interactions_user ON interactions (user_key, occurred_at)",
    """
    CREATE INDEX interactions_without_profile ON interactions (user_key)
        WHERE openness IS NULL
    """,
    """
    CREATE TABLE interaction_keys (
        interaction_id text PRIMARY KEY,
        occurred_at timestamptz NOT NULL
    )
    """,
    # A trainer that holds the exclusive lock knows that no insert with an assigned id is still
    # uncommitted (recparams_server/store/training.py).
    """
    CREATE FUNCTION lock_interaction_insert() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_advisory_xact_lock_shared(7270001);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER interactions_insert_lock BEFORE INSERT ON interactions
        FOR EACH STATEMENT EXECUTE FUNCTION lock_interaction_insert()
    """,
    # Attaching takes a weaker lock than CREATE TABLE ... PARTITION OF: a long read of the trainer
    # does not hold up inserts. Taking that lock first, and not an advisory one, makes the second
    # look see a partition that somebody else has just made.
    """
    CREATE FUNCTION ensure_interactions_partition(at timestamptz) RETURNS void
    LANGUAGE plpgsql AS $$
    DECLARE
        week timestamptz := date_trunc('week', at, 'UTC');
        partition text := 'interactions_' || to_char(week AT TIME ZONE 'UTC', 'IYYY"w"IW');
    BEGIN
        IF to_regclass(partition) IS NOT NULL THEN
            RETURN;
        END IF;
        LOCK TABLE interactions IN SHARE UPDATE EXCLUSIVE MODE;
        IF to_regclass(partition) IS NOT NULL THEN
            RETURN;
        END IF;
        EXECUTE format(
            'CREATE TABLE %I (LIKE interactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
            partition
        );
        EXECUTE format(
            'ALTER TABLE interactions ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            partition, week, week + interval '168 hours'
        );
    END $$
    """,
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
        i.openness, i.conscientiousness, i.extraversion, i.agreeableness, i.neuroticism,
        i.propensity, i.model_version, i.decision_id, i.decided_at,
        i.id <= u.trained_through AS trained
    FROM interactions i JOIN users u USING (user_key)
    """,
    """
    CREATE TABLE system_tasks (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        task_name text NOT NULL,
        status text NOT NULL
            CHECK (status IN ('pending', 'running', 'completed', 'failed', 'cancelled')),
        executed_at timestamptz NOT NULL DEFAULT now(),
        started_at timestamptz,
        finished_at timestamptz,
        users_processed bigint NOT NULL DEFAULT 0,
        records_processed bigint NOT NULL DEFAULT 0,
        request_id text NOT NULL,
        stage text NOT NULL DEFAULT 'starting',
        progress real NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 1),
        cancel_requested boolean NOT NULL DEFAULT false,
        error text NOT NULL DEFAULT '',
        metadata jsonb NOT NULL DEFAULT '{}',
        UNIQUE (task_name, request_id)
    )
    """,
    """
    CREATE UNIQUE INDEX system_tasks_one_at_a_time ON system_tasks (task_name)
        WHERE status IN ('pending', 'running')
    """,
    """
    CREATE TABLE model_versions (
        version bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        created_at timestamptz NOT NULL DEFAULT now(),
        origin text NOT NULL CHECK (origin IN ('trained', 'imported')),
        run_id bigint REFERENCES system_tasks,
        parent_version bigint REFERENCES model_versions,
        algorithm text NOT NULL,
        space jsonb NOT NULL,
        hyperparameters jsonb NOT NULL,
        metrics jsonb NOT NULL,
        q_table bytea NOT NULL,
        q_table_checksum text NOT NULL,
        policy bytea NOT NULL,
        policy_checksum text NOT NULL
    )
    """,
    "ALTER TABLE model_versions ALTER COLUMN q_table SET STORAGE EXTERNAL",
    "ALTER TABLE model_versions ALTER COLUMN policy SET STORAGE EXTERNAL",
    """
    CREATE TABLE model_activations (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        version bigint REFERENCES model_versions,
        rollback_to bigint REFERENCES model_activations,
        activated_at timestamptz NOT NULL DEFAULT now(),
        reason text NOT NULL DEFAULT ''
    )
    """,
    """
    COMMENT ON TABLE model_activations IS
        'the row with the highest id says what to serve; a null version is the rules'
    """,
    """
    CREATE FUNCTION notify_model_activation() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('recparams_model', NEW.id::text);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER model_activations_notify AFTER INSERT ON model_activations
        FOR EACH ROW EXECUTE FUNCTION notify_model_activation()
    """,
    "CREATE TABLE secrets (name text PRIMARY KEY, value bytea NOT NULL)",
)


def upgrade() -> None:
    """Creates everything."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused: it would drop every interaction."""
    raise NotImplementedError("there is nothing before the first migration")
