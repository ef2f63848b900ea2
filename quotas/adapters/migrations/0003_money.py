"""Tariffs, programmes, vouchers, holds, allowance leases, usage, charges and statements."""

from alembic import op

revision = "quotas_0003"
down_revision = "quotas_0002"
branch_labels = None
depends_on = None

AMOUNT = "BETWEEN 0 AND 9007199254740992"
NAME = "<> ''"


def upgrade() -> None:
    """Create the tables of money's nouns; the ledger itself came before."""
    _prices()
    _vouchers()
    _cash()
    _charges()
    _holds()
    _usage()


def downgrade() -> None:
    """Drop them."""
    for name in (
        "token_usage", "compute_usage", "allowance_lease", "compute_hold", "statement", "charge", "centre_contract",
        "cash_movement", "voucher", "programme", "rate", "tariff",
    ):  # fmt: skip
        op.execute(f"DROP TABLE quotas.{name}")


def _prices() -> None:
    op.execute("""
        CREATE TABLE quotas.tariff (
            id text PRIMARY KEY,
            name text NOT NULL CHECK (name <> ''),
            validity tstzrange NOT NULL CHECK (NOT isempty(validity) AND lower(validity) IS NOT NULL
                AND lower_inc(validity) AND NOT upper_inc(validity)),
            windows jsonb NOT NULL,
            published_by text NOT NULL,
            published_at timestamptz NOT NULL,
            CONSTRAINT tariff_no_overlap EXCLUDE USING gist (validity WITH &&)
        )""")
    op.execute(f"""
        CREATE TABLE quotas.rate (
            tariff_id text NOT NULL REFERENCES quotas.tariff,
            meter text NOT NULL CHECK (meter IN ('gpu_hour', 'input', 'cached_input', 'output')),
            resource text NOT NULL CHECK (resource {NAME}),
            qos text NOT NULL CHECK (qos IN ('', 'reserved', 'standard', 'interruptible')),
            "window" text NOT NULL,
            micro_yuan bigint NOT NULL CHECK (micro_yuan {AMOUNT}),
            PRIMARY KEY (tariff_id, meter, resource, qos, "window"),
            CONSTRAINT rate_qos_fits_meter CHECK ((meter = 'gpu_hour') = (qos <> ''))
        )""")
    op.execute("""
        CREATE TABLE quotas.centre_contract (
            id text PRIMARY KEY,
            centre text NOT NULL CHECK (centre <> ''),
            payout_ppm bigint NOT NULL CHECK (payout_ppm BETWEEN 0 AND 1000000),
            validity tstzrange NOT NULL CHECK (NOT isempty(validity) AND lower(validity) IS NOT NULL),
            CONSTRAINT centre_contract_no_overlap EXCLUDE USING gist (centre WITH =, validity WITH &&)
        )""")


def _vouchers() -> None:
    op.execute(f"""
        CREATE TABLE quotas.programme (
            id text PRIMARY KEY,
            name text NOT NULL UNIQUE CHECK (name {NAME}),
            funder text NOT NULL CHECK (funder {NAME}),
            share_ppm bigint NOT NULL CHECK (share_ppm BETWEEN 1 AND 1000000),
            pool bigint NOT NULL CHECK (pool {AMOUNT} AND pool > 0),
            cap_per_firm_year bigint NOT NULL CHECK (cap_per_firm_year {AMOUNT} AND cap_per_firm_year > 0),
            validity tstzrange NOT NULL CHECK (NOT isempty(validity) AND lower(validity) IS NOT NULL
                AND upper(validity) IS NOT NULL),
            voucher_days bigint NOT NULL CHECK (voucher_days BETWEEN 1 AND 1100),
            priority bigint NOT NULL,
            covers text[] NOT NULL CHECK (cardinality(covers) > 0 AND covers <@ ARRAY['compute', 'tokens']),
            pools text[],
            created_by text NOT NULL,
            created_at timestamptz NOT NULL
        )""")
    op.execute(f"""
        CREATE TABLE quotas.voucher (
            id text PRIMARY KEY,
            programme_id text NOT NULL REFERENCES quotas.programme,
            firm_id text NOT NULL REFERENCES quotas.firm,
            amount bigint NOT NULL CHECK (amount {AMOUNT} AND amount > 0),
            valid_from timestamptz NOT NULL,
            expires_at timestamptz NOT NULL CHECK (expires_at > valid_from),
            granted_by text NOT NULL,
            granted_at timestamptz NOT NULL,
            note text NOT NULL
        )""")
    op.execute("CREATE INDEX voucher_firm ON quotas.voucher (firm_id)")
    op.execute("CREATE INDEX voucher_programme ON quotas.voucher (programme_id, firm_id)")
    op.execute("CREATE INDEX voucher_expiry ON quotas.voucher (expires_at)")


def _cash() -> None:
    op.execute("""
        CREATE TABLE quotas.cash_movement (
            id text PRIMARY KEY,
            firm_id text NOT NULL REFERENCES quotas.firm,
            amount bigint NOT NULL CHECK (amount <> 0 AND abs(amount) <= 9007199254740992),
            evidence text NOT NULL CHECK (evidence <> ''),
            recorded_by text NOT NULL,
            at timestamptz NOT NULL,
            period text NOT NULL,
            operation_id bigint NOT NULL REFERENCES quotas.operation
        )""")
    op.execute("CREATE INDEX cash_movement_firm ON quotas.cash_movement (firm_id, period)")


def _charges() -> None:
    op.execute("""
        CREATE TABLE quotas.charge (
            id text PRIMARY KEY,
            line_key text NOT NULL UNIQUE,
            kind text NOT NULL CHECK (kind IN ('compute', 'tokens')),
            firm_id text NOT NULL REFERENCES quotas.firm,
            project_id text NOT NULL,
            subject text NOT NULL,
            period text NOT NULL,
            service_period text NOT NULL,
            tariff_id text REFERENCES quotas.tariff,
            key_id text,
            model text,
            pool text,
            centre text,
            qos text,
            gpu_ms bigint NOT NULL DEFAULT 0,
            input bigint NOT NULL DEFAULT 0,
            cached_input bigint NOT NULL DEFAULT 0,
            output bigint NOT NULL DEFAULT 0,
            requests bigint NOT NULL DEFAULT 0,
            rates jsonb NOT NULL,
            amount bigint NOT NULL,
            voucher bigint NOT NULL,
            cash bigint NOT NULL,
            vouchers jsonb NOT NULL,
            loss bigint NOT NULL DEFAULT 0,
            list_amount bigint NOT NULL,
            payout_ppm bigint NOT NULL DEFAULT 0,
            payable bigint NOT NULL DEFAULT 0,
            residue bigint NOT NULL DEFAULT 0,
            first_at timestamptz NOT NULL,
            last_at timestamptz NOT NULL,
            explanation jsonb NOT NULL,
            reverses text REFERENCES quotas.charge,
            note text NOT NULL DEFAULT '',
            CONSTRAINT charge_is_paid CHECK (amount = voucher + cash),
            CONSTRAINT charge_reversed_once UNIQUE (reverses)
        )""")
    op.execute("CREATE INDEX charge_firm ON quotas.charge (firm_id, period)")
    op.execute("CREATE INDEX charge_centre ON quotas.charge (centre, period) WHERE centre IS NOT NULL")
    op.execute("CREATE INDEX charge_subject ON quotas.charge (subject)")
    op.execute("""
        CREATE TABLE quotas.statement (
            firm_id text NOT NULL REFERENCES quotas.firm,
            period text NOT NULL,
            hash text NOT NULL,
            body jsonb NOT NULL,
            closed_at timestamptz NOT NULL,
            PRIMARY KEY (firm_id, period)
        )""")
    op.execute("""
        CREATE TRIGGER statement_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.statement
        FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")
    # A charge of a closed month is as closed as its statement: what comes later goes to a later month.
    op.execute("""
        CREATE FUNCTION quotas.charge_of_open_month() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF TG_OP = 'DELETE' OR EXISTS (
                SELECT FROM quotas.statement s WHERE s.firm_id = NEW.firm_id AND s.period = NEW.period
            ) THEN
                RAISE EXCEPTION 'the charges of a closed month stand' USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            RETURN NEW;
        END $$""")
    op.execute("""
        CREATE TRIGGER charge_of_open_month BEFORE INSERT OR UPDATE OR DELETE ON quotas.charge
        FOR EACH ROW EXECUTE FUNCTION quotas.charge_of_open_month()""")


def _holds() -> None:
    op.execute("""
        CREATE TABLE quotas.compute_hold (
            id text PRIMARY KEY,
            firm_id text NOT NULL REFERENCES quotas.firm,
            project_id text NOT NULL,
            subject text NOT NULL,
            pool text NOT NULL,
            qos text NOT NULL,
            gpu_milli bigint NOT NULL CHECK (gpu_milli > 0),
            seconds_max bigint NOT NULL CHECK (seconds_max > 0),
            tariff_id text NOT NULL REFERENCES quotas.tariff,
            amount bigint NOT NULL CHECK (amount >= 0),
            cash bigint NOT NULL CHECK (cash >= 0),
            cash_pending_id bigint,
            parts jsonb NOT NULL,
            explanation jsonb NOT NULL,
            state text NOT NULL CHECK (state IN ('open', 'settled', 'released', 'expired')),
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            closed_at timestamptz,
            close_reason text,
            request_key text NOT NULL UNIQUE,
            request_hash bytea NOT NULL,
            CONSTRAINT compute_hold_closes_once CHECK ((state = 'open') = (closed_at IS NULL))
        )""")
    op.execute("CREATE INDEX compute_hold_open ON quotas.compute_hold (expires_at) WHERE state = 'open'")
    op.execute("CREATE INDEX compute_hold_subject ON quotas.compute_hold (subject)")
    op.execute("""
        CREATE TABLE quotas.allowance_lease (
            id text PRIMARY KEY,
            holder text NOT NULL CHECK (holder <> ''),
            firm_id text NOT NULL REFERENCES quotas.firm,
            pending_id bigint NOT NULL,
            state text NOT NULL CHECK (state IN ('open', 'returned', 'expired')),
            created_at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            recalled_at timestamptz,
            closed_at timestamptz,
            CONSTRAINT allowance_lease_closes_once CHECK ((state = 'open') = (closed_at IS NULL))
        )""")
    op.execute("CREATE INDEX allowance_lease_open ON quotas.allowance_lease (firm_id) WHERE state = 'open'")


def _usage() -> None:
    # The exclusion is S2 in the database: no second of an attempt is ever sold twice.
    op.execute("""
        CREATE TABLE quotas.compute_usage (
            attempt_id text NOT NULL,
            started_at timestamptz NOT NULL,
            ended_at timestamptz NOT NULL CHECK (ended_at >= started_at),
            gpu_ms bigint NOT NULL CHECK (gpu_ms >= 0),
            request_hash bytea NOT NULL,
            charge_id text NOT NULL REFERENCES quotas.charge,
            PRIMARY KEY (attempt_id, started_at),
            CONSTRAINT compute_usage_sold_once
                EXCLUDE USING gist (attempt_id WITH =, tstzrange(started_at, ended_at) WITH &&)
        )""")
    op.execute("""
        CREATE TABLE quotas.token_usage (
            source text NOT NULL,
            id text NOT NULL,
            firm_id text NOT NULL,
            project_id text NOT NULL,
            key_id text NOT NULL,
            model text NOT NULL,
            base_model text NOT NULL,
            input bigint NOT NULL CHECK (input >= 0),
            cached_input bigint NOT NULL CHECK (cached_input BETWEEN 0 AND input),
            output bigint NOT NULL CHECK (output >= 0),
            at timestamptz NOT NULL,
            outcome text NOT NULL,
            lease_id text,
            dedicated boolean NOT NULL,
            charge_id text,
            ingested_at timestamptz NOT NULL,
            PRIMARY KEY (source, id)
        )""")
    op.execute("CREATE INDEX token_usage_charge ON quotas.token_usage (charge_id)")
    op.execute("CREATE INDEX token_usage_at ON quotas.token_usage USING brin (at)")
    for table in ("compute_usage", "token_usage"):
        op.execute(f"""
            CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")
