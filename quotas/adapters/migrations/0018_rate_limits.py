"""Rate limits of firms, and of each firm at a model; requests at once, leased by gateways like the minutes."""

from alembic import op

revision = "quotas_0018"
down_revision = "quotas_0017"
branch_labels = None
depends_on = None

# Whose limits: a key's own, a firm's over all its keys, or a firm's at one model ("<firm>/<model>"; where that firm
# has none of its own, what every firm has at the model).
LIMITS_OF = """
CREATE FUNCTION quotas.rate_limits_of(subject text)
RETURNS TABLE (requests_per_minute bigint, tokens_per_minute bigint, requests_at_once integer)
LANGUAGE sql STABLE AS $$
    SELECT k.requests_per_minute, k.tokens_per_minute, k.requests_at_once
    FROM quotas.api_key k WHERE k.id = subject
    UNION ALL
    (SELECT l.requests_per_minute, l.tokens_per_minute, l.requests_at_once
    FROM quotas.rate_limit l WHERE subject LIKE 'firm\\_%'
        AND l.firm_id IN (split_part(subject, '/', 1), '')
        AND l.model = substr(subject, length(split_part(subject, '/', 1)) + 2)
        AND (l.firm_id <> '' OR l.model <> '')
    ORDER BY l.firm_id DESC LIMIT 1)
$$"""

# As in 0011, for any subject.
LEASE_WINDOWS = """
CREATE FUNCTION quotas.lease_windows(
    holder text, minute bigint, subjects text[], requests bigint[], tokens bigint[], give_back boolean
) RETURNS TABLE (
    subject text, requests_leased bigint, tokens_leased bigint, recalled boolean, requests_free bigint,
    tokens_free bigint
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ask record; shared quotas.rate_window; mine quotas.rate_lease; more_requests bigint; more_tokens bigint;
BEGIN
    INSERT INTO quotas.rate_window (minute, subject, requests_limit, tokens_limit)
    SELECT lease_windows.minute, s.name, l.requests_per_minute, l.tokens_per_minute
    FROM unnest(subjects) AS s (name), LATERAL quotas.rate_limits_of(s.name) l
    WHERE NOT give_back ORDER BY s.name ON CONFLICT DO NOTHING;
    FOR ask IN SELECT u.* FROM unnest(subjects, requests, tokens) AS u (subject, requests, tokens)
    ORDER BY u.subject LOOP
        SELECT * INTO shared FROM quotas.rate_window w
        WHERE w.minute = lease_windows.minute AND w.subject = ask.subject FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        SELECT * INTO mine FROM quotas.rate_lease l
        WHERE l.minute = lease_windows.minute AND l.subject = ask.subject AND l.holder = lease_windows.holder;
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
        WHERE w.minute = lease_windows.minute AND w.subject = ask.subject RETURNING * INTO shared;
        INSERT INTO quotas.rate_lease AS l (minute, subject, holder, requests, tokens)
        VALUES (lease_windows.minute, ask.subject, lease_windows.holder, mine.requests + more_requests,
            mine.tokens + more_tokens)
        ON CONFLICT (minute, subject, holder) DO UPDATE SET requests = excluded.requests, tokens = excluded.tokens,
            recalled = l.recalled AND NOT give_back
        RETURNING * INTO mine;
        RETURN QUERY SELECT ask.subject, mine.requests, mine.tokens, mine.recalled,
            shared.requests_limit - shared.requests_leased, shared.tokens_limit - shared.tokens_leased;
    END LOOP;
END $$"""

# What a holder has is set, never added to. It is never made less than what it uses, so a limit that was lowered takes
# hold as requests end. Leases that ran out count no more.
LEASE_PLACES = """
CREATE FUNCTION quotas.lease_places(
    holder text, subjects text[], wanted integer[], used integer[], give_back boolean, now timestamptz,
    until timestamptz
) RETURNS TABLE (subject text, places integer, recalled boolean, free integer, asked boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    ask record; room integer; others integer; mine quotas.place_lease; others_asked boolean;
BEGIN
    FOR ask IN SELECT u.* FROM unnest(subjects, wanted, used) AS u (subject, wanted, used) ORDER BY u.subject LOOP
        SELECT l.requests_at_once INTO room FROM quotas.rate_limits_of(ask.subject) l;
        CONTINUE WHEN room IS NULL;
        PERFORM pg_advisory_xact_lock(hashtextextended('quotas.places:' || ask.subject, 0));
        DELETE FROM quotas.place_lease l WHERE l.subject = ask.subject AND l.until <= lease_places.now;
        SELECT coalesce(sum(l.places), 0), coalesce(bool_or(l.recalled AND l.places > 0), false)
        INTO others, others_asked FROM quotas.place_lease l
        WHERE l.subject = ask.subject AND l.holder <> lease_places.holder;
        SELECT * INTO mine FROM quotas.place_lease l
        WHERE l.subject = ask.subject AND l.holder = lease_places.holder;
        mine.places := coalesce(mine.places, 0); mine.recalled := coalesce(mine.recalled, false);
        IF give_back THEN
            mine.places := least(mine.places, ask.used); mine.recalled := false;
        ELSIF mine.recalled THEN
            mine.places := greatest(least(mine.places, ask.used), least(mine.places, room - others));
        ELSE
            mine.places := greatest(least(mine.places, ask.used),
                least(greatest(mine.places, ask.wanted), room - others));
        END IF;
        INSERT INTO quotas.place_lease AS l (subject, holder, places, recalled, until)
        VALUES (ask.subject, lease_places.holder, mine.places, mine.recalled, lease_places.until)
        ON CONFLICT (subject, holder) DO UPDATE
        SET places = excluded.places, recalled = excluded.recalled, until = excluded.until;
        RETURN QUERY SELECT ask.subject, mine.places, mine.recalled, greatest(0, room - others - mine.places),
            others_asked;
    END LOOP;
END $$"""


def upgrade() -> None:
    """Give windows subjects beside keys, and add the limits and the places."""
    op.execute("ALTER TABLE quotas.api_key ADD COLUMN requests_at_once integer CHECK (requests_at_once > 0)")
    op.execute("""
        CREATE TABLE quotas.rate_limit (
            firm_id text NOT NULL,
            model text NOT NULL,
            requests_per_minute bigint CHECK (requests_per_minute >= 0),
            tokens_per_minute bigint CHECK (tokens_per_minute >= 0),
            requests_at_once integer CHECK (requests_at_once >= 0),
            set_at timestamptz NOT NULL,
            set_by text NOT NULL,
            reason text,
            PRIMARY KEY (firm_id, model),
            CONSTRAINT rate_limit_is_over_something CHECK (firm_id <> '' OR model <> '')
        )""")
    op.execute(LIMITS_OF)
    op.execute("DROP FUNCTION quotas.lease_windows")
    op.execute("ALTER TABLE quotas.rate_window DROP CONSTRAINT rate_window_key_id_fkey")
    op.execute("ALTER TABLE quotas.rate_window RENAME COLUMN key_id TO subject")
    op.execute("ALTER TABLE quotas.rate_lease RENAME COLUMN key_id TO subject")
    op.execute(LEASE_WINDOWS)
    op.execute("""
        CREATE TABLE quotas.place_lease (
            subject text NOT NULL,
            holder text NOT NULL CHECK (holder <> ''),
            places integer NOT NULL CHECK (places >= 0),
            recalled boolean NOT NULL DEFAULT false,
            until timestamptz NOT NULL,
            PRIMARY KEY (subject, holder)
        ) WITH (fillfactor = 50)""")
    op.execute(LEASE_PLACES)


def downgrade() -> None:
    """Back to windows of keys alone."""
    op.execute("DROP FUNCTION quotas.lease_places")
    op.execute("DROP TABLE quotas.place_lease")
    op.execute("DROP FUNCTION quotas.lease_windows")
    op.execute("TRUNCATE quotas.rate_window CASCADE")
    op.execute("ALTER TABLE quotas.rate_lease RENAME COLUMN subject TO key_id")
    op.execute("ALTER TABLE quotas.rate_window RENAME COLUMN subject TO key_id")
    op.execute("ALTER TABLE quotas.rate_window ADD FOREIGN KEY (key_id) REFERENCES quotas.api_key")
    op.execute(_before())
    op.execute("DROP FUNCTION quotas.rate_limits_of")
    op.execute("DROP TABLE quotas.rate_limit")
    op.execute("ALTER TABLE quotas.api_key DROP COLUMN requests_at_once")


def _before() -> str:
    """The function of 0011."""
    plain = LEASE_WINDOWS.replace("subjects", "keys").replace("subject", "key_id")
    limits = "LATERAL quotas.rate_limits_of(s.name) l"
    assert limits in plain, "what follows replaces it"
    return plain.replace(limits, "quotas.api_key l").replace(
        "WHERE NOT give_back ORDER BY s.name", "WHERE l.id = s.name AND NOT give_back ORDER BY s.name"
    )
