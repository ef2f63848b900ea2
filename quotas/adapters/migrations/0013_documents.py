"""Documents of applications: what was sent, its hash, and where its bytes are."""

from alembic import op

# Files are numbered in the order in which they run; a revision keeps the name that databases know it by.
revision = "quotas_0010"
down_revision = "quotas_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table; a document is never changed."""
    op.execute("""
        CREATE TABLE quotas.firm_document (
            id text PRIMARY KEY CHECK (id LIKE 'doc\\_%'),
            firm_id text NOT NULL REFERENCES quotas.firm,
            kind text NOT NULL CHECK (kind IN ('business_licence', 'representative', 'authorisation', 'other')),
            name text NOT NULL CHECK (name <> ''),
            media_type text NOT NULL CHECK (media_type IN ('application/pdf', 'image/png', 'image/jpeg')),
            size_bytes bigint NOT NULL CHECK (size_bytes BETWEEN 1 AND 10485760),
            sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            blob text NOT NULL CHECK (blob <> ''),
            uploaded_by text NOT NULL,
            uploaded_at timestamptz NOT NULL,
            CONSTRAINT firm_document_once UNIQUE (firm_id, sha256)
        )""")
    op.execute("""
        CREATE TRIGGER firm_document_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.firm_document
        FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TABLE quotas.firm_document")
