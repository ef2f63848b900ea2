"""Pools, nodes, workloads, attempts, artifacts and uploads."""

from alembic import op

revision = "scheduler_0001"
down_revision = None
branch_labels = ("scheduler",)
depends_on = "kit_0001"


def upgrade() -> None:
    """Create the schema `scheduler`."""
    op.execute("CREATE SCHEMA scheduler")
    _fleet()
    _workloads()
    _attempts()
    _files()


def downgrade() -> None:
    """Drop the schema."""
    op.execute("DROP SCHEMA scheduler CASCADE")


def _fleet() -> None:
    op.execute("""
        CREATE TABLE scheduler.pool (
            name text PRIMARY KEY,
            centre text NOT NULL,
            accelerator text NOT NULL,
            created_at timestamptz NOT NULL,
            CONSTRAINT pool_name CHECK (name = centre || '/' || accelerator AND name ~ '^[a-z0-9-]+/[a-z0-9.-]+$')
        )""")
    op.execute("""
        CREATE TABLE scheduler.node (
            id text PRIMARY KEY CHECK (id <> ''),
            pool text NOT NULL REFERENCES scheduler.pool,
            address text NOT NULL,
            resource text NOT NULL CHECK (resource IN ('GPU', 'slot')),
            gpu_milli integer NOT NULL CHECK (gpu_milli >= 0),
            placed_milli integer NOT NULL,
            state text NOT NULL CHECK (state IN ('ready', 'lost')),
            cordon_reason text CHECK (cordon_reason <> ''),
            draining boolean NOT NULL,
            first_seen_at timestamptz NOT NULL,
            last_seen_at timestamptz NOT NULL,
            CONSTRAINT node_not_oversold CHECK (placed_milli BETWEEN 0 AND gpu_milli),
            CONSTRAINT node_drains_closed CHECK (NOT draining OR cordon_reason IS NOT NULL)
        )""")
    op.execute("CREATE INDEX node_pool ON scheduler.node (pool)")
    op.execute("""
        CREATE TABLE scheduler.quota_use (
            firm_id text NOT NULL,
            pool text NOT NULL,
            used_milli integer NOT NULL CHECK (used_milli >= 0),
            PRIMARY KEY (firm_id, pool)
        )""")


def _workloads() -> None:
    op.execute("""
        CREATE TABLE scheduler.quote (
            id text PRIMARY KEY CHECK (id LIKE 'quo\\_%'),
            firm_id text NOT NULL,
            project_id text NOT NULL,
            shape_hash bytea NOT NULL CHECK (octet_length(shape_hash) = 32),
            max_micro_yuan bigint NOT NULL CHECK (max_micro_yuan >= 0),
            body jsonb NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL CHECK (expires_at > created_at)
        )""")
    op.execute("""
        CREATE TABLE scheduler.workload (
            id text PRIMARY KEY CHECK (id ~ '^(job|rep)_'),
            kind text NOT NULL CHECK (kind IN ('job', 'replica')),
            name text NOT NULL CHECK (name <> '' AND char_length(name) <= 200),
            firm_id text NOT NULL,
            project_id text NOT NULL,
            submitted_by text NOT NULL,
            idempotency_key text NOT NULL CHECK (char_length(idempotency_key) BETWEEN 1 AND 200),
            request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
            recipe text,
            program text NOT NULL,
            params jsonb NOT NULL,
            sandboxed boolean NOT NULL,
            pools text[] NOT NULL CHECK (cardinality(pools) >= 1),
            workers integer NOT NULL CHECK (workers >= 1),
            gpu_milli integer NOT NULL CHECK (gpu_milli >= 1000 AND gpu_milli % 1000 = 0),
            qos text NOT NULL CHECK (qos IN ('reserved', 'standard', 'interruptible')),
            priority integer NOT NULL CHECK (priority BETWEEN -1000 AND 1000),
            expected_seconds integer CHECK (expected_seconds > 0),
            max_runtime_seconds integer CHECK (max_runtime_seconds > 0),
            cap_micro_yuan bigint CHECK (cap_micro_yuan >= 0),
            quote_id text REFERENCES scheduler.quote,
            state text NOT NULL
                CHECK (state IN ('queued', 'starting', 'running', 'succeeded', 'failed', 'cancelled')),
            fence integer NOT NULL CHECK (fence >= 0),
            failures integer NOT NULL CHECK (failures >= 0),
            wait_reason text CHECK (wait_reason IN
                ('new', 'no_quota', 'no_room', 'no_node', 'behind', 'no_money', 'no_price', 'backoff')),
            wait_detail text,
            eta timestamptz,
            eta_estimated boolean NOT NULL,
            held_until timestamptz,
            stop_requested_at timestamptz,
            stop_reason text,
            progress jsonb,
            last_cause text,
            last_message text,
            charged_micro_yuan bigint NOT NULL CHECK (charged_micro_yuan >= 0),
            submitted_at timestamptz NOT NULL,
            started_at timestamptz,
            ended_at timestamptz,
            CONSTRAINT workload_waits_with_reason CHECK ((state = 'queued') = (wait_reason IS NOT NULL)),
            CONSTRAINT workload_over_has_end
                CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (ended_at IS NOT NULL)),
            CONSTRAINT workload_job_has_limit CHECK (kind = 'replica'
                OR (max_runtime_seconds IS NOT NULL AND expected_seconds IS NOT NULL)),
            CONSTRAINT workload_charge_capped
                CHECK (cap_micro_yuan IS NULL OR charged_micro_yuan <= cap_micro_yuan),
            CONSTRAINT workload_replica_is_stopped CHECK (kind = 'job' OR state NOT IN ('succeeded', 'failed'))
        )""")
    op.execute("CREATE UNIQUE INDEX workload_idempotency ON scheduler.workload (firm_id, kind, idempotency_key)")
    op.execute("CREATE INDEX workload_live ON scheduler.workload (state) WHERE ended_at IS NULL")
    op.execute("CREATE INDEX workload_firm ON scheduler.workload (firm_id, submitted_at)")
    op.execute("""
        CREATE TABLE scheduler.workload_input (
            workload_id text NOT NULL REFERENCES scheduler.workload,
            name text NOT NULL CHECK (name <> ''),
            blob text NOT NULL,
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
            PRIMARY KEY (workload_id, name)
        )""")


def _attempts() -> None:
    op.execute("""
        CREATE TABLE scheduler.attempt (
            id text PRIMARY KEY CHECK (id LIKE 'att\\_%'),
            workload_id text NOT NULL REFERENCES scheduler.workload,
            firm_id text NOT NULL,
            fence integer NOT NULL CHECK (fence >= 1),
            state text NOT NULL CHECK (state IN ('placed', 'claimed', 'running', 'ended')),
            pool text NOT NULL REFERENCES scheduler.pool,
            token_hash bytea NOT NULL CHECK (octet_length(token_hash) = 32),
            hold_id text NOT NULL,
            held_seconds integer NOT NULL CHECK (held_seconds > 0),
            runner text,
            placed_at timestamptz NOT NULL,
            ordered_at timestamptz,
            claimed_at timestamptz,
            lease_until timestamptz,
            started_at timestamptz,
            metered_ms bigint NOT NULL CHECK (metered_ms >= 0),
            stop_requested_at timestamptz,
            stop_cause text,
            ended_at timestamptz,
            cause text CHECK (cause IN ('done', 'program_error', 'time_limit', 'setup', 'node_lost', 'lease_lost',
                'evicted', 'unpaid', 'cancelled', 'platform')),
            message text,
            exit_code integer,
            ran_ms bigint CHECK (ran_ms >= 0),
            cleared_at timestamptz,
            CONSTRAINT attempt_end_is_whole CHECK ((state = 'ended') = (ended_at IS NOT NULL)
                AND (state = 'ended') = (cause IS NOT NULL)),
            CONSTRAINT attempt_claim_has_lease CHECK ((claimed_at IS NULL) = (lease_until IS NULL)
                AND (state IN ('placed', 'ended') OR claimed_at IS NOT NULL)),
            CONSTRAINT attempt_runs_from_a_start CHECK (state <> 'running' OR started_at IS NOT NULL),
            CONSTRAINT attempt_stops_for_a_cause CHECK ((stop_requested_at IS NULL) = (stop_cause IS NULL)),
            CONSTRAINT attempt_cleared_when_over CHECK (cleared_at IS NULL OR state = 'ended')
        )""")
    op.execute("CREATE UNIQUE INDEX attempt_fence ON scheduler.attempt (workload_id, fence)")
    op.execute("CREATE UNIQUE INDEX attempt_live ON scheduler.attempt (workload_id) WHERE state <> 'ended'")
    op.execute("CREATE INDEX attempt_uncleared ON scheduler.attempt (ended_at) WHERE cleared_at IS NULL")
    op.execute("""
        CREATE TABLE scheduler.placement (
            attempt_id text NOT NULL REFERENCES scheduler.attempt,
            worker integer NOT NULL CHECK (worker >= 0),
            node_id text NOT NULL REFERENCES scheduler.node,
            gpu_milli integer NOT NULL CHECK (gpu_milli > 0),
            PRIMARY KEY (attempt_id, worker)
        )""")
    op.execute("CREATE INDEX placement_node ON scheduler.placement (node_id)")
    op.execute("""
        CREATE TABLE scheduler.log_line (
            workload_id text NOT NULL REFERENCES scheduler.workload,
            fence integer NOT NULL,
            seq integer NOT NULL CHECK (seq >= 1),
            at timestamptz NOT NULL,
            text text NOT NULL,
            PRIMARY KEY (workload_id, fence, seq)
        )""")


def _files() -> None:
    op.execute("""
        CREATE TABLE scheduler.artifact (
            id text PRIMARY KEY CHECK (id LIKE 'art\\_%'),
            firm_id text NOT NULL,
            project_id text NOT NULL,
            workload_id text NOT NULL REFERENCES scheduler.workload,
            attempt_id text NOT NULL REFERENCES scheduler.attempt,
            name text NOT NULL CHECK (name <> ''),
            kind text NOT NULL CHECK (kind IN ('adapter', 'results', 'file')),
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
            blob text NOT NULL,
            meta jsonb NOT NULL,
            created_at timestamptz NOT NULL,
            published_at timestamptz
        )""")
    op.execute("CREATE UNIQUE INDEX artifact_name ON scheduler.artifact (attempt_id, name)")
    op.execute("CREATE INDEX artifact_firm ON scheduler.artifact (firm_id, created_at)")
    op.execute("""
        CREATE TABLE scheduler.upload (
            id text PRIMARY KEY CHECK (id LIKE 'up\\_%'),
            firm_id text NOT NULL,
            project_id text NOT NULL,
            name text NOT NULL CHECK (name <> ''),
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
            received_bytes bigint NOT NULL,
            state text NOT NULL CHECK (state IN ('open', 'complete')),
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            CONSTRAINT upload_not_overfull CHECK (received_bytes BETWEEN 0 AND size_bytes),
            CONSTRAINT upload_complete_is_whole CHECK (state = 'open' OR received_bytes = size_bytes)
        )""")
    op.execute("CREATE INDEX upload_firm ON scheduler.upload (firm_id, created_at)")
    op.execute("""
        CREATE TABLE scheduler.upload_part (
            upload_id text NOT NULL REFERENCES scheduler.upload,
            start bigint NOT NULL CHECK (start >= 0),
            size_bytes bigint NOT NULL CHECK (size_bytes > 0),
            blob text NOT NULL,
            PRIMARY KEY (upload_id, start)
        )""")
