"""Models, adapters, deployments, replicas, and what their engines counted."""

from alembic import op

revision = "serving_0001"
down_revision = None
branch_labels = ("serving",)
depends_on = ("kit_0001", "quotas_0001")


def upgrade() -> None:
    """Create the schema `serving`."""
    op.execute("CREATE SCHEMA serving")
    op.execute("""
        CREATE TABLE serving.model (
            name text PRIMARY KEY CHECK (name ~ '^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$'),
            display_name text NOT NULL CHECK (length(display_name) BETWEEN 1 AND 120),
            owner text NOT NULL CHECK (length(owner) BETWEEN 1 AND 120),
            licence text NOT NULL CHECK (length(licence) BETWEEN 1 AND 120),
            filing_number text CHECK (length(filing_number) BETWEEN 1 AND 64),
            modality text NOT NULL CHECK (modality IN ('text', 'image_text', 'embedding')),
            context_tokens integer NOT NULL CHECK (context_tokens BETWEEN 64 AND 2097152),
            capabilities text[] NOT NULL CHECK (
                cardinality(capabilities) > 0
                AND capabilities <@ ARRAY['chat', 'completions', 'embeddings', 'tools', 'vision']
            ),
            source text NOT NULL CHECK (source ~ '^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$'),
            revision text NOT NULL CHECK (length(revision) BETWEEN 1 AND 120),
            engine_arguments jsonb NOT NULL CHECK (jsonb_typeof(engine_arguments) = 'object'),
            gpu_milli integer NOT NULL CHECK (gpu_milli BETWEEN 1000 AND 64000 AND gpu_milli % 1000 = 0),
            max_loras integer NOT NULL CHECK (max_loras BETWEEN 0 AND 256),
            deprecated_at timestamptz,
            retires_at timestamptz,
            created_at timestamptz NOT NULL,
            CHECK (retires_at >= deprecated_at)
        )""")
    op.execute("""
        CREATE TABLE serving.adapter (
            id text PRIMARY KEY CHECK (id ~ '^adp_'),
            name text NOT NULL,
            firm_id text NOT NULL REFERENCES quotas.firm (id),
            project_id text NOT NULL REFERENCES quotas.project (id),
            base_model text REFERENCES serving.model (name),
            base_revision text NOT NULL,
            rank integer NOT NULL CHECK (rank BETWEEN 0 AND 16),
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
            job_id text NOT NULL,
            weights_artifact text,
            config bytea,
            state text NOT NULL CHECK (state IN ('active', 'refused', 'retiring', 'deleted')),
            reason text,
            last_used_at timestamptz,
            retired_at timestamptz,
            created_at timestamptz NOT NULL,
            CONSTRAINT adapter_served_is_whole CHECK (
                state NOT IN ('active', 'retiring') OR (
                    rank >= 1 AND base_model IS NOT NULL AND weights_artifact IS NOT NULL AND config IS NOT NULL
                    AND name ~ '^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$'
                )
            ),
            CHECK (state <> 'refused' OR reason IS NOT NULL),
            CHECK (state NOT IN ('retiring', 'deleted') OR retired_at IS NOT NULL)
        )""")
    op.execute("""
        CREATE UNIQUE INDEX adapter_name_in_firm ON serving.adapter (firm_id, name)
        WHERE state IN ('active', 'retiring')""")
    op.execute("CREATE UNIQUE INDEX adapter_of_job ON serving.adapter (job_id) WHERE state <> 'deleted'")
    op.execute("CREATE INDEX adapter_of_base ON serving.adapter (base_model) WHERE state IN ('active', 'retiring')")
    op.execute("""
        CREATE TABLE serving.deployment (
            id text PRIMARY KEY CHECK (id ~ '^dep_'),
            model text NOT NULL REFERENCES serving.model (name),
            kind text NOT NULL CHECK (kind IN ('shared', 'dedicated')),
            firm_id text NOT NULL REFERENCES quotas.firm (id),
            project_id text NOT NULL REFERENCES quotas.project (id),
            pool text NOT NULL,
            qos text NOT NULL CHECK (qos IN ('reserved', 'standard', 'interruptible')),
            replicas_min integer NOT NULL,
            replicas integer NOT NULL,
            replicas_max integer NOT NULL CHECK (replicas_max <= 64),
            generation integer NOT NULL CHECK (generation >= 1),
            state text NOT NULL CHECK (state IN ('active', 'stopped')),
            blocked_reason text,
            blocked_until timestamptz,
            created_by text NOT NULL,
            idempotency_key text CHECK (length(idempotency_key) BETWEEN 1 AND 128),
            asked jsonb NOT NULL,
            created_at timestamptz NOT NULL,
            changed_at timestamptz NOT NULL,
            CONSTRAINT deployment_bounds CHECK (
                0 <= replicas_min AND replicas_min <= replicas AND replicas <= replicas_max AND replicas_max >= 1
            ),
            CONSTRAINT deployment_payer CHECK ((kind = 'shared') = (firm_id = 'firm_platform'))
        )""")
    op.execute("CREATE INDEX deployment_of_firm ON serving.deployment (firm_id, id)")
    op.execute("CREATE UNIQUE INDEX deployment_idempotency ON serving.deployment (firm_id, idempotency_key)")
    _create_replicas()
    _create_counts()


def _create_replicas() -> None:
    op.execute("""
        CREATE TABLE serving.replica (
            id text PRIMARY KEY CHECK (id ~ '^rep_'),
            deployment_id text NOT NULL REFERENCES serving.deployment (id),
            model text NOT NULL REFERENCES serving.model (name),
            workload_id text UNIQUE,
            attempt_id text UNIQUE,
            fence bigint NOT NULL DEFAULT 0,
            generation integer NOT NULL,
            max_concurrency integer NOT NULL CHECK (max_concurrency BETWEEN 1 AND 4096),
            state text NOT NULL CHECK (
                state IN ('pending', 'starting', 'warming', 'ready', 'draining', 'gone', 'failed')
            ),
            reason text,
            url text CHECK (url ~ '^https?://[^/@?#]+$'),
            engine_start text,
            requests_running integer NOT NULL DEFAULT 0 CHECK (requests_running >= 0),
            requests_waiting integer NOT NULL DEFAULT 0 CHECK (requests_waiting >= 0),
            kv_cache_usage_ppm integer NOT NULL DEFAULT 0 CHECK (kv_cache_usage_ppm BETWEEN 0 AND 1000000),
            created_at timestamptz NOT NULL,
            changed_at timestamptz NOT NULL,
            ready_at timestamptz,
            synced_at timestamptz,
            stop_at timestamptz,
            CHECK (state <> 'ready' OR (url IS NOT NULL AND engine_start IS NOT NULL AND attempt_id IS NOT NULL))
        )""")
    op.execute("CREATE INDEX replica_of_deployment ON serving.replica (deployment_id, changed_at)")
    op.execute("CREATE INDEX replica_live ON serving.replica (id) WHERE state NOT IN ('gone', 'failed')")
    op.execute("""
        CREATE FUNCTION serving.replica_moves_legally() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.state <> OLD.state AND NOT (CASE OLD.state
                WHEN 'pending' THEN NEW.state IN ('starting', 'draining', 'gone', 'failed')
                WHEN 'starting' THEN NEW.state IN ('pending', 'warming', 'draining', 'gone', 'failed')
                WHEN 'warming' THEN NEW.state IN ('pending', 'starting', 'ready', 'draining', 'gone', 'failed')
                WHEN 'ready' THEN NEW.state IN ('pending', 'starting', 'draining', 'gone', 'failed')
                WHEN 'draining' THEN NEW.state IN ('gone', 'failed')
                ELSE false END)
            THEN
                RAISE EXCEPTION 'replica % cannot go from % to %', OLD.id, OLD.state, NEW.state
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'replica_moves_legally';
            END IF;
            RETURN NEW;
        END $$""")
    op.execute("""
        CREATE TRIGGER replica_moves_legally BEFORE UPDATE OF state ON serving.replica
        FOR EACH ROW EXECUTE FUNCTION serving.replica_moves_legally()""")
    op.execute("""
        CREATE TABLE serving.engine_key (
            replica_id text PRIMARY KEY REFERENCES serving.replica (id),
            engine_start text NOT NULL,
            secret text NOT NULL CHECK (length(secret) >= 32)
        )""")
    op.execute("""
        CREATE TABLE serving.adapter_load (
            replica_id text NOT NULL REFERENCES serving.replica (id),
            adapter_id text NOT NULL REFERENCES serving.adapter (id),
            state text NOT NULL CHECK (state IN ('pending', 'loading', 'ready', 'unloading', 'failed')),
            reason text,
            changed_at timestamptz NOT NULL,
            PRIMARY KEY (replica_id, adapter_id)
        )""")
    op.execute("CREATE INDEX adapter_load_of_adapter ON serving.adapter_load (adapter_id)")


def _create_counts() -> None:
    op.execute("""
        CREATE TABLE serving.engine_count (
            engine_start text PRIMARY KEY CHECK (engine_start ~ '^eng_'),
            replica_id text NOT NULL REFERENCES serving.replica (id),
            model text NOT NULL,
            prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (prompt_tokens >= warmup_prompt_tokens),
            generation_tokens bigint NOT NULL DEFAULT 0 CHECK (generation_tokens >= warmup_generation_tokens),
            warmup_prompt_tokens bigint NOT NULL DEFAULT 0 CHECK (warmup_prompt_tokens >= 0),
            warmup_generation_tokens bigint NOT NULL DEFAULT 0 CHECK (warmup_generation_tokens >= 0),
            started_at timestamptz NOT NULL,
            counted_at timestamptz NOT NULL,
            ended_at timestamptz
        )""")
    op.execute("CREATE INDEX engine_count_of_replica ON serving.engine_count (replica_id)")
    op.execute("""
        CREATE TABLE serving.engine_usage (
            source text NOT NULL,
            usage_id text NOT NULL,
            engine_start text NOT NULL,
            prompt_tokens bigint NOT NULL CHECK (prompt_tokens >= 0),
            generation_tokens bigint NOT NULL CHECK (generation_tokens >= 0),
            at timestamptz NOT NULL,
            PRIMARY KEY (source, usage_id)
        )""")
    op.execute("""
        CREATE INDEX engine_usage_of_start ON serving.engine_usage (engine_start)
        INCLUDE (prompt_tokens, generation_tokens, at)""")


def downgrade() -> None:
    """Drop the schema."""
    op.execute("DROP SCHEMA serving CASCADE")
