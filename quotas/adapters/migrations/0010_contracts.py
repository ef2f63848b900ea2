"""Discounts by contract; images, audio and storage as usage; vouchers that pay for every kind of it."""

from alembic import op

# Files are numbered in the order in which they run; a revision keeps the name that databases know it by.
revision = "quotas_0009"
down_revision = "quotas_0011"
branch_labels = None
depends_on = None

KINDS = "'compute', 'tokens', 'images', 'audio', 'storage'"
METERS = "'gpu_hour', 'input', 'cached_input', 'output', 'image', 'audio_second', 'storage_gb_month'"
OLD_KINDS = "'compute', 'tokens'"
OLD_METERS = "'gpu_hour', 'input', 'cached_input', 'output'"
OLD_ACTIONS = "'voucher_grant', 'top_up', 'withdrawal', 'credit_line', 'refund', 'tariff', 'policy'"


def upgrade() -> None:
    """Create discounts and widen what a price, a charge, a programme and a proposal may be of."""
    op.execute(f"""
        CREATE TABLE quotas.discount (
            id text PRIMARY KEY CHECK (id LIKE 'dsc\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            kind text NOT NULL CHECK (kind IN ({KINDS})),
            resource text NOT NULL CHECK (resource <> ''),
            off_ppm bigint NOT NULL CHECK (off_ppm BETWEEN 1 AND 1000000),
            validity tstzrange NOT NULL CHECK (NOT isempty(validity) AND lower(validity) IS NOT NULL
                AND lower_inc(validity) AND NOT upper_inc(validity)),
            contract text NOT NULL CHECK (contract <> ''),
            granted_by text NOT NULL,
            granted_at timestamptz NOT NULL,
            CONSTRAINT discount_no_overlap
                EXCLUDE USING gist (firm_id WITH =, kind WITH =, resource WITH =, validity WITH &&)
        )""")
    _checks(KINDS, METERS, f"{OLD_ACTIONS}, 'discount'")
    op.execute("""
        ALTER TABLE quotas.charge
            ADD COLUMN quantity bigint NOT NULL DEFAULT 0,
            ADD COLUMN discount bigint NOT NULL DEFAULT 0,
            ADD COLUMN discount_id text REFERENCES quotas.discount,
            ADD COLUMN contract_rates jsonb NOT NULL DEFAULT '{}',
            ADD COLUMN voucher_bases jsonb NOT NULL DEFAULT '{}'""")
    # The table of tokens takes every record of the kinds that are counted: one source, one id, one charge.
    op.execute(f"""
        ALTER TABLE quotas.token_usage
            ADD COLUMN kind text NOT NULL DEFAULT 'tokens' CHECK (kind IN ({KINDS}) AND kind <> 'compute'),
            ADD COLUMN quantity bigint NOT NULL DEFAULT 0 CHECK (quantity BETWEEN 0 AND 9007199254740992),
            ADD CONSTRAINT token_usage_counts_one_thing
                CHECK (CASE kind WHEN 'tokens' THEN quantity = 0 ELSE input + output = 0 END)""")


def downgrade() -> None:
    """Narrow them again; fails where something of the new kinds is kept."""
    op.execute("ALTER TABLE quotas.token_usage DROP COLUMN quantity, DROP COLUMN kind")
    op.execute("""
        ALTER TABLE quotas.charge DROP COLUMN voucher_bases, DROP COLUMN contract_rates, DROP COLUMN discount_id,
            DROP COLUMN discount, DROP COLUMN quantity""")
    _checks(OLD_KINDS, OLD_METERS, OLD_ACTIONS)
    op.execute("DROP TABLE quotas.discount")


def _checks(kinds: str, meters: str, actions: str) -> None:
    for table, name, rule in (
        ("charge", "charge_kind_check", f"kind IN ({kinds})"),
        ("programme", "programme_covers_check", f"cardinality(covers) > 0 AND covers <@ ARRAY[{kinds}]"),
        ("rate", "rate_meter_check", f"meter IN ({meters})"),
        ("proposal", "proposal_action_check", f"action IN ({actions})"),
    ):
        op.execute(f"ALTER TABLE quotas.{table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} CHECK ({rule})")
