"""Conflicts that PostgreSQL reports at writes to a table, on order."""

from sqlalchemy import text

from kit.db import Database

DEADLOCK = "40P01"
BROKEN = "XX000"


async def refuse_writes(db: Database, table: str, *, code: str, times: int = 1, where: str = "true") -> None:
    """The next writes to rows of `table` with `where` (about NEW) fail with an SQL state: the first `times` of them."""
    async with db.transaction() as tx:
        await tx.execute(text("CREATE SEQUENCE public.refused"))  # it counts on when a transaction is rolled back
        await tx.execute(
            text(f"""
                CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN
                    IF {where} THEN
                        IF nextval('public.refused') <= {times} THEN
                            RAISE EXCEPTION 'refused by the test' USING ERRCODE = '{code}';
                        END IF;
                    END IF;
                    RETURN NEW;
                END $$""")
        )
        await tx.execute(
            text(f"CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()")
        )
