"""What a posting checks of one column becomes a type: as strict, and not parsed again for every row that is written.

PostgreSQL reads the text of a table's CHECKs anew in each statement that writes to it; a domain's it keeps. The CHECKs
of the four tables that every posting writes to were a fifth of its processor time.
"""

from alembic import op

revision = "quotas_0019"
down_revision = "quotas_0018"
branch_labels = None
depends_on = None

DOMAINS = {
    "amount": "bigint CHECK (VALUE BETWEEN 1 AND 9007199254740992)",
    "total": "bigint CHECK (VALUE >= 0)",
    "floor": "bigint CHECK (VALUE <= 0)",
    "word": "text CHECK (VALUE <> '')",
    "sha256": "bytea CHECK (octet_length(VALUE) = 32)",
}
COLUMNS = {
    "balance": {
        "debits_posted": "total",
        "credits_posted": "total",
        "debits_pending": "total",
        "credits_pending": "total",
        "floor": "floor",
    },
    "pending": {"amount_left": "amount"},
    "transfer": {"amount": "amount"},
    "operation": {"scope": "word", "key": "word", "request_hash": "sha256"},
}
BETWEEN_TWO = "debit_id <> credit_id"
FINAL_RESOLVES = "NOT final OR pending_id IS NOT NULL"
RULES = {
    "amount": "BETWEEN 1 AND 9007199254740992",
    "amount_left": "> 0",
    "scope": "<> ''",
    "key": "<> ''",
    "floor": "<= 0",
}


def upgrade() -> None:
    """Create the types and give them to the columns; what is of two columns stays one CHECK a table."""
    for name, rule in DOMAINS.items():
        op.execute(f"CREATE DOMAIN quotas.{name} AS {rule}")
    for table, columns in COLUMNS.items():
        steps = [f"DROP CONSTRAINT {table}_{column}_check" for column in columns]
        steps += [f"ALTER COLUMN {column} TYPE quotas.{domain}" for column, domain in columns.items()]
        op.execute(f"ALTER TABLE quotas.{table} {', '.join(steps)}")
    op.execute(f"""
        ALTER TABLE quotas.transfer DROP CONSTRAINT transfer_between_two, DROP CONSTRAINT transfer_final_resolves,
            ADD CONSTRAINT transfer_is_whole CHECK ({BETWEEN_TWO} AND ({FINAL_RESOLVES}))""")


def downgrade() -> None:
    """As it was."""
    op.execute(f"""
        ALTER TABLE quotas.transfer DROP CONSTRAINT transfer_is_whole,
            ADD CONSTRAINT transfer_between_two CHECK ({BETWEEN_TWO}),
            ADD CONSTRAINT transfer_final_resolves CHECK ({FINAL_RESOLVES})""")
    for table, columns in COLUMNS.items():
        steps = [f"ALTER COLUMN {column} TYPE {DOMAINS[domain].split()[0]}" for column, domain in columns.items()]
        steps += [f"ADD CONSTRAINT {table}_{column}_check CHECK ({_rule(column)})" for column in columns]
        op.execute(f"ALTER TABLE quotas.{table} {', '.join(steps)}")
    for name in DOMAINS:
        op.execute(f"DROP DOMAIN quotas.{name}")


def _rule(column: str) -> str:
    return "octet_length(request_hash) = 32" if column == "request_hash" else f"{column} {RULES.get(column, '>= 0')}"
