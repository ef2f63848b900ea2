"""Rate windows: what each holder leased of a key's minute, never more than the key's limit in all."""

from alembic import op

# Files are numbered in the order in which they run; a revision keeps the name that databases know it by.
revision = "quotas_0011"
down_revision = "quotas_0008"
branch_labels = None
depends_on = None

# What is in hand is set, never added to: the same call twice leases once. A kind without a limit (NULL) is leased as
# asked; LEAST takes no notice of a NULL. A window's row is locked before any of its leases, keys in order.
LEASE_WINDOWS = """
CREATE FUNCTION quotas.lease_windows(
    holder text, minute bigint, keys text[], requests bigint[], tokens bigint[], give_back boolean
) RETURNS TABLE (
    key_id text, requests_leased bigint, tokens_leased bigint, recalled boolean, requests_free bigint,
    tokens_free bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ask record; shared quotas.rate_window; mine quotas.rate_lease; more_requests bigint; more_tokens bigint;
BEGIN
    INSERT INTO quotas.rate_window (minute, key_id, requests_limit, tokens_limit)
    SELECT lease_windows.minute, k.id, k.requests_per_minute, k.tokens_per_minute
    FROM quotas.api_key k WHERE k.id = ANY (keys) AND NOT give_back ORDER BY k.id ON CONFLICT DO NOTHING;
    FOR ask IN SELECT u.* FROM unnest(keys, requests, tokens) AS u (key_id, requests, tokens) ORDER BY u.key_id LOOP
        SELECT * INTO shared FROM quotas.rate_window w
        WHERE w.minute = lease_windows.minute AND w.key_id = ask.key_id FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        SELECT * INTO mine FROM quotas.rate_lease l
        WHERE l.minute = lease_windows.minute AND l.key_id = ask.key_id AND l.holder = lease_windows.holder;
        mine.requests := coalesce(mine.requests, 0); mine.tokens := coalesce(mine.tokens, 0);
        IF give_back THEN
            more_requests := least(0, ask.requests - mine.requests); more_tokens := least(0, ask.tokens - mine.tokens);
        ELSIF coalesce(mine.recalled, false) THEN
            more_requests := 0; more_tokens := 0;
        ELSE
            more_requests := greatest(0, least(ask.requests - mine.requests,
                shared.requests_limit - shared.requests_leased));
            more_tokens := greatest(0, least(ask.tokens - mine.tokens, shared.tokens_limit - shared.tokens_leased));
        END IF;
        UPDATE quotas.rate_window w SET requests_leased = w.requests_leased + more_requests,
            tokens_leased = w.tokens_leased + more_tokens
        WHERE w.minute = lease_windows.minute AND w.key_id = ask.key_id RETURNING * INTO shared;
        INSERT INTO quotas.rate_lease AS l (minute, key_id, holder, requests, tokens)
        VALUES (lease_windows.minute, ask.key_id, lease_windows.holder, mine.requests + more_requests,
            mine.tokens + more_tokens)
        ON CONFLICT (minute, key_id, holder) DO UPDATE SET requests = excluded.requests, tokens = excluded.tokens,
            recalled = l.recalled AND NOT give_back
        RETURNING * INTO mine;
        RETURN QUERY SELECT ask.key_id, mine.requests, mine.tokens, mine.recalled,
            shared.requests_limit - shared.requests_leased, shared.tokens_limit - shared.tokens_leased;
    END LOOP;
END $$"""


def upgrade() -> None:
    """Create the windows, their leases and the function that keeps the two equal."""
    op.execute("""
        CREATE TABLE quotas.rate_window (
            minute bigint NOT NULL CHECK (minute > 0),
            key_id text NOT NULL REFERENCES quotas.api_key,
            requests_limit bigint CHECK (requests_limit >= 0),
            tokens_limit bigint CHECK (tokens_limit >= 0),
            requests_leased bigint NOT NULL DEFAULT 0 CHECK (requests_leased >= 0),
            tokens_leased bigint NOT NULL DEFAULT 0 CHECK (tokens_leased >= 0),
            PRIMARY KEY (minute, key_id),
            CONSTRAINT rate_window_not_oversold
                CHECK (requests_leased <= requests_limit AND tokens_leased <= tokens_limit)
        ) WITH (fillfactor = 50)""")
    op.execute("""
        CREATE TABLE quotas.rate_lease (
            minute bigint NOT NULL,
            key_id text NOT NULL,
            holder text NOT NULL CHECK (holder <> ''),
            requests bigint NOT NULL CHECK (requests >= 0),
            tokens bigint NOT NULL CHECK (tokens >= 0),
            recalled boolean NOT NULL DEFAULT false,
            PRIMARY KEY (minute, key_id, holder),
            FOREIGN KEY (minute, key_id) REFERENCES quotas.rate_window ON DELETE CASCADE
        ) WITH (fillfactor = 50)""")
    op.execute(LEASE_WINDOWS)


def downgrade() -> None:
    """Drop them."""
    op.execute("DROP FUNCTION quotas.lease_windows")
    op.execute("DROP TABLE quotas.rate_lease")
    op.execute("DROP TABLE quotas.rate_window")
