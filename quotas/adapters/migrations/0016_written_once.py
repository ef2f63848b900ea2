"""Payments, vouchers, programmes and rates are only ever added; of a price in force only its end may be set."""

from alembic import op

revision = "quotas_0016"
down_revision = "quotas_0015"
branch_labels = None
depends_on = None

WRITTEN_ONCE = ("cash_movement", "voucher", "programme", "rate")
ENDED_LATER = ("tariff", "centre_contract", "discount")


def upgrade() -> None:
    """Let triggers refuse the rest. A discount that has not begun may be taken back; nothing was charged with it."""
    for table in WRITTEN_ONCE:
        op.execute(f"""
            CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quotas.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")
    op.execute("""
        CREATE FUNCTION quotas.only_the_end_changes() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF to_jsonb(NEW) - 'validity' <> to_jsonb(OLD) - 'validity' OR lower(NEW.validity) <> lower(OLD.validity)
            THEN
                RAISE EXCEPTION 'rows of %.% are only ever added, and ended', TG_TABLE_SCHEMA, TG_TABLE_NAME
                    USING ERRCODE = 'integrity_constraint_violation';
            END IF;
            RETURN NEW;
        END $$""")
    for table in ENDED_LATER:
        op.execute(f"""
            CREATE TRIGGER {table}_is_only_ended BEFORE UPDATE ON quotas.{table}
            FOR EACH ROW EXECUTE FUNCTION quotas.only_the_end_changes()""")
        kept = "TRUNCATE" if table == "discount" else "DELETE OR TRUNCATE"
        op.execute(f"""
            CREATE TRIGGER {table}_is_kept BEFORE {kept} ON quotas.{table}
            FOR EACH STATEMENT EXECUTE FUNCTION quotas.refuse_change()""")


def downgrade() -> None:
    """Drop them."""
    for table in ENDED_LATER:
        op.execute(f"DROP TRIGGER {table}_is_kept ON quotas.{table}")
        op.execute(f"DROP TRIGGER {table}_is_only_ended ON quotas.{table}")
    op.execute("DROP FUNCTION quotas.only_the_end_changes()")
    for table in WRITTEN_ONCE:
        op.execute(f"DROP TRIGGER {table}_is_append_only ON quotas.{table}")
