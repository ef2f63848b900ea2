"""Firms, projects, members, sessions, keys, quota versions and the audit log."""

from alembic import op

revision = "quotas_0001"
down_revision = None
branch_labels = ("quotas",)
depends_on = "kit_0001"

ROLES = "'platform_admin', 'centre_operator', 'auditor', 'firm_owner', 'firm_finance', 'firm_developer'"
STAFF = "ARRAY['platform_admin', 'centre_operator', 'auditor']"
PEOPLE = "ARRAY['firm_owner', 'firm_finance', 'firm_developer']"


def upgrade() -> None:
    """Create the schema `quotas` with its people."""
    op.execute("CREATE SCHEMA quotas")
    op.execute("""
        CREATE FUNCTION quotas.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'rows of %.% are only ever added', TG_TABLE_SCHEMA, TG_TABLE_NAME
                USING ERRCODE = 'integrity_constraint_violation';
        END $$""")
    _firms()
    _members()
    _doors()
    _keys()
    _quotas()
    _audit()
    _platform()


def downgrade() -> None:
    """Drop the schema."""
    op.execute("DROP SCHEMA quotas CASCADE")


def _firms() -> None:
    op.execute("""
        CREATE TABLE quotas.firm (
            id text PRIMARY KEY CHECK (id LIKE 'firm\\_%'),
            kind text NOT NULL CHECK (kind IN ('company', 'platform')),
            name text NOT NULL CHECK (name <> '' AND char_length(name) <= 200),
            state text NOT NULL
                CHECK (state IN ('applied', 'in_review', 'active', 'suspended', 'closed', 'rejected')),
            state_reason text,
            uscc text CHECK (uscc ~ '^[0-9ABCDEFGHJKLMNPQRTUWXY]{18}$'),
            doubts text[] NOT NULL,
            industry_cluster text CHECK (industry_cluster IN ('online_audiovisual', 'online_games',
                'digital_publishing', 'content_security', 'culture_metaverse', 'creative_design')),
            district text,
            contact_name text,
            contact_email text,
            contact_phone text,
            reviewer_id text,
            applied_at timestamptz NOT NULL,
            state_since timestamptz NOT NULL,
            CONSTRAINT firm_company_is_known CHECK (kind = 'platform' OR (uscc IS NOT NULL AND district IS NOT NULL
                AND industry_cluster IS NOT NULL AND contact_name IS NOT NULL AND contact_email IS NOT NULL)),
            CONSTRAINT firm_platform_is_active CHECK (kind <> 'platform' OR state = 'active'),
            CONSTRAINT firm_no_says_why
                CHECK (state NOT IN ('suspended', 'closed', 'rejected') OR state_reason IS NOT NULL)
        )""")
    op.execute("CREATE UNIQUE INDEX firm_uscc ON quotas.firm (uscc) WHERE state NOT IN ('rejected', 'closed')")
    op.execute("CREATE INDEX firm_queue ON quotas.firm (state, applied_at)")
    op.execute("""
        CREATE TABLE quotas.project (
            id text PRIMARY KEY CHECK (id LIKE 'prj\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            name text NOT NULL CHECK (name <> '' AND char_length(name) <= 100),
            created_at timestamptz NOT NULL
        )""")
    op.execute("CREATE UNIQUE INDEX project_name ON quotas.project (firm_id, name)")


def _members() -> None:
    op.execute(f"""
        CREATE TABLE quotas.member (
            id text PRIMARY KEY CHECK (id LIKE 'mem\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            email text NOT NULL CHECK (email = lower(email) AND email LIKE '%_@_%'),
            name text NOT NULL,
            password_hash text NOT NULL CHECK (password_hash LIKE '$argon2id$%'),
            roles text[] NOT NULL CHECK (cardinality(roles) > 0 AND roles <@ ARRAY[{ROLES}]),
            state text NOT NULL CHECK (state IN ('active', 'left')),
            created_at timestamptz NOT NULL,
            left_at timestamptz,
            CONSTRAINT member_left_once CHECK ((state = 'left') = (left_at IS NOT NULL)),
            CONSTRAINT member_role_fits_firm CHECK (
                roles <@ CASE WHEN firm_id = 'firm_platform' THEN {STAFF} ELSE {PEOPLE} END)
        )""")
    op.execute("CREATE UNIQUE INDEX member_email ON quotas.member (email) WHERE state = 'active'")
    op.execute("CREATE INDEX member_firm ON quotas.member (firm_id)")
    op.execute(f"""
        CREATE TABLE quotas.invitation (
            id text PRIMARY KEY CHECK (id LIKE 'inv\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            email text NOT NULL CHECK (email = lower(email)),
            roles text[] NOT NULL CHECK (cardinality(roles) > 0),
            token_hash bytea NOT NULL CHECK (octet_length(token_hash) = 32),
            invited_by text NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL CHECK (expires_at > created_at),
            accepted_at timestamptz,
            revoked_at timestamptz,
            CONSTRAINT invitation_ends_once CHECK (accepted_at IS NULL OR revoked_at IS NULL),
            CONSTRAINT invitation_role_fits_firm CHECK (
                roles <@ CASE WHEN firm_id = 'firm_platform' THEN {STAFF} ELSE {PEOPLE} END)
        )""")
    op.execute("CREATE UNIQUE INDEX invitation_token ON quotas.invitation (token_hash)")
    op.execute("CREATE INDEX invitation_firm ON quotas.invitation (firm_id)")


def _doors() -> None:
    op.execute("""
        CREATE TABLE quotas.session (
            id text PRIMARY KEY CHECK (id LIKE 'ses\\_%'),
            member_id text NOT NULL REFERENCES quotas.member,
            token_hash bytea NOT NULL CHECK (octet_length(token_hash) = 32),
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL CHECK (expires_at > created_at),
            ended_at timestamptz,
            origin text
        )""")
    op.execute("CREATE UNIQUE INDEX session_token ON quotas.session (token_hash)")
    op.execute("CREATE INDEX session_member ON quotas.session (member_id)")
    op.execute("""
        CREATE TABLE quotas.sign_in_attempt (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            email text NOT NULL,
            origin text,
            at timestamptz NOT NULL,
            succeeded boolean NOT NULL
        )""")
    op.execute("CREATE INDEX sign_in_attempt_email ON quotas.sign_in_attempt (email, at)")
    op.execute("CREATE INDEX sign_in_attempt_origin ON quotas.sign_in_attempt (origin, at)")
    op.execute("""
        CREATE TABLE quotas.admin_link (
            id text PRIMARY KEY CHECK (id LIKE 'lnk\\_%'),
            token_hash bytea NOT NULL CHECK (octet_length(token_hash) = 32),
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL CHECK (expires_at > created_at),
            used_at timestamptz
        )""")
    op.execute("CREATE UNIQUE INDEX admin_link_token ON quotas.admin_link (token_hash)")


def _keys() -> None:
    op.execute("""
        CREATE TABLE quotas.api_key (
            id text PRIMARY KEY CHECK (id LIKE 'key\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            project_id text NOT NULL REFERENCES quotas.project,
            name text NOT NULL CHECK (name <> '' AND char_length(name) <= 100),
            secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
            scopes text[] NOT NULL CHECK (cardinality(scopes) > 0),
            models text[] CHECK (cardinality(models) > 0),
            ip_ranges text[] CHECK (cardinality(ip_ranges) > 0),
            requests_per_minute integer CHECK (requests_per_minute > 0),
            tokens_per_minute bigint CHECK (tokens_per_minute > 0),
            created_by text NOT NULL,
            created_at timestamptz NOT NULL,
            expires_at timestamptz CHECK (expires_at > created_at),
            revoked_at timestamptz,
            revoked_why text,
            replaced_by text REFERENCES quotas.api_key,
            last_used_at timestamptz,
            CONSTRAINT api_key_revoked_says_why CHECK ((revoked_at IS NULL) = (revoked_why IS NULL))
        )""")
    op.execute("CREATE INDEX api_key_firm ON quotas.api_key (firm_id)")
    op.execute("CREATE INDEX api_key_project ON quotas.api_key (project_id)")


def _quotas() -> None:
    op.execute("""
        CREATE TABLE quotas.quota_request (
            id text PRIMARY KEY CHECK (id LIKE 'qrq\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            pool text NOT NULL CHECK (pool ~ '^[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*$'),
            asked_gpu_milli bigint NOT NULL CHECK (asked_gpu_milli BETWEEN 0 AND 1000000000),
            effective_from timestamptz,
            reason text NOT NULL CHECK (reason <> ''),
            state text NOT NULL CHECK (state IN ('open', 'granted', 'partly_granted', 'refused', 'withdrawn')),
            requested_by text NOT NULL,
            requested_at timestamptz NOT NULL,
            decided_by text,
            decided_at timestamptz,
            decision_reason text,
            granted_gpu_milli bigint CHECK (granted_gpu_milli BETWEEN 0 AND 1000000000),
            condition text,
            CONSTRAINT quota_request_decided_once CHECK ((state = 'open') = (decided_at IS NULL)),
            CONSTRAINT quota_request_says_how_much
                CHECK ((state IN ('granted', 'partly_granted')) = (granted_gpu_milli IS NOT NULL)),
            CONSTRAINT quota_request_no_says_why
                CHECK (state NOT IN ('partly_granted', 'refused') OR decision_reason IS NOT NULL)
        )""")
    op.execute("CREATE UNIQUE INDEX quota_request_open ON quotas.quota_request (firm_id, pool) WHERE state = 'open'")
    op.execute("CREATE INDEX quota_request_queue ON quotas.quota_request (state, requested_at)")
    op.execute("""
        CREATE TABLE quotas.quota_version (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            firm_id text NOT NULL REFERENCES quotas.firm,
            pool text NOT NULL CHECK (pool ~ '^[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*$'),
            nominal_gpu_milli bigint NOT NULL CHECK (nominal_gpu_milli BETWEEN 0 AND 1000000000),
            borrowing_gpu_milli bigint CHECK (borrowing_gpu_milli BETWEEN 0 AND 1000000000),
            lending_gpu_milli bigint CHECK (lending_gpu_milli BETWEEN 0 AND nominal_gpu_milli),
            effective_from timestamptz NOT NULL,
            set_at timestamptz NOT NULL,
            set_by text NOT NULL,
            reason text,
            request_id text REFERENCES quotas.quota_request,
            CONSTRAINT quota_version_not_backdated CHECK (effective_from >= set_at)
        )""")
    op.execute("CREATE INDEX quota_version_order ON quotas.quota_version (firm_id, pool, effective_from, seq)")
    _only_added("quota_version")
    op.execute("""
        CREATE TABLE quotas.cohort_placement (
            version bigint PRIMARY KEY CHECK (version > 0),
            node text NOT NULL CHECK (node ~ '^(firm_[0-9a-z]+|[a-z][a-z0-9-]{0,62})$'),
            parent text CHECK (parent ~ '^[a-z][a-z0-9-]{0,62}$'),
            weight_milli integer NOT NULL CHECK (weight_milli > 0),
            effective_from timestamptz NOT NULL,
            set_at timestamptz NOT NULL,
            set_by text NOT NULL,
            reason text,
            CONSTRAINT cohort_not_below_itself CHECK (node <> parent),
            CONSTRAINT cohort_placement_not_backdated CHECK (effective_from >= set_at)
        )""")
    op.execute("CREATE INDEX cohort_placement_node ON quotas.cohort_placement (node, effective_from)")
    _only_added("cohort_placement")


def _audit() -> None:
    op.execute("""
        CREATE TABLE quotas.audit_entry (
            seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            at timestamptz NOT NULL,
            actor_kind text NOT NULL,
            actor_id text NOT NULL,
            actor_firm_id text,
            origin text,
            action text NOT NULL CHECK (action LIKE '%_._%'),
            subject text NOT NULL CHECK (subject <> ''),
            firm_id text,
            before jsonb,
            after jsonb,
            reason text
        )""")
    op.execute("CREATE INDEX audit_entry_firm ON quotas.audit_entry (firm_id, seq)")
    op.execute("CREATE INDEX audit_entry_subject ON quotas.audit_entry (subject, seq)")
    _only_added("audit_entry")


def _only_added(table: str) -> None:
    op.execute(f"""
        CREATE TRIGGER {table}_only_added BEFORE UPDATE OR DELETE ON quotas.{table}
            FOR EACH ROW EXECUTE FUNCTION quotas.refuse_change()""")
    op.execute(f"""
        CREATE TRIGGER {table}_not_emptied BEFORE TRUNCATE ON quotas.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def _platform() -> None:
    """The platform is a firm itself: shared deployments are its workloads."""
    op.execute("""
        INSERT INTO quotas.firm (id, kind, name, state, doubts, applied_at, state_since)
        VALUES ('firm_platform', 'platform', 'Heliu', 'active', '{}', now(), now())""")
    op.execute("""
        INSERT INTO quotas.project (id, firm_id, name, created_at)
        VALUES ('prj_platform', 'firm_platform', 'default', now())""")
