"""The ledger in PostgreSQL does what the ledger on paper does, whatever is asked of it and in whatever order."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from kit.db import Database
from kit.errors import Conflict
from kit.units import MAX_AMOUNT
from quotas import ledger
from quotas.adapters import ledger_audit, ledger_store
from quotas.chart import AccountSpec
from quotas.ledger import Account, Book, Leg, Refusal, TransferKind
from quotas.ledger_checks import (
    check_conservation,
    check_floors,
    check_replay,
    check_resolutions,
    replay,
)
from tests.support.databases import TestServer

START = datetime(2026, 11, 1, tzinfo=UTC)
ASSETS = ("CNY", "CNY", "CNY", "CNY", "GPU_MS:a/x")
BOUNDED = (False, True, True, False, True)

amounts = st.one_of(st.integers(1, 60), st.sampled_from([-1, 0, MAX_AMOUNT, MAX_AMOUNT + 1]))


class LedgerMachine(RuleBasedStateMachine):
    """Every rule is posted to both ledgers; afterwards they must be the same."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.db = Database(self.url, pool_size=1)
        self.at = START
        self.keys = 0
        self.posted_keys: list[int] = []
        self.last: tuple[list[Leg], tuple[int, ...]] | None = None
        self.ids: dict[int, int] = {}  # model's account → database's
        self.transfers: dict[int, int] = {}  # model's transfer → database's

    def run(self, work: Any) -> Any:
        async def inside() -> Any:
            async with self.db.transaction() as tx:
                return await work(tx)

        return self.runner.run(inside())

    @initialize()
    def open_accounts(self) -> None:
        async def wipe(tx: Any) -> dict[AccountSpec, int]:
            for table in ("operation", "transfer", "block"):
                await tx.execute(text(f"ALTER TABLE quotas.{table} DISABLE TRIGGER USER"))
            await tx.execute(text("TRUNCATE quotas.account, quotas.balance, quotas.operation, quotas.transfer, "
                                  "quotas.pending, quotas.block CASCADE"))  # fmt: skip
            for table in ("operation", "transfer", "block"):
                await tx.execute(text(f"ALTER TABLE quotas.{table} ENABLE TRIGGER USER"))
            return await ledger_store.accounts(tx, specs, at=START)

        specs = [
            AccountSpec(f"account:{n}", asset, "test", bounded)
            for n, (asset, bounded) in enumerate(zip(ASSETS, BOUNDED, strict=True), start=1)
        ]
        opened = self.run(wipe)
        self.ids = {n: opened[spec] for n, spec in enumerate(specs, start=1)}
        self.book = Book({n: Account(n, spec.code, spec.asset, spec.bounded) for n, spec in enumerate(specs, start=1)})

    def post(self, legs: list[Leg]) -> None:
        self.keys += 1
        expected = ledger.post_legs(self.book, legs, at=self.at)
        real = self.run(
            lambda tx: ledger_store.post(
                tx, scope="test", key=str(self.keys), request=self.keys, legs=[self.translated(leg) for leg in legs],
                at=self.at,
            )
        )  # fmt: skip
        if isinstance(expected, Refusal):
            assert isinstance(real, Refusal), f"the model refuses {expected}, the database posted"
            account = None if expected.account is None else self.ids[expected.account]
            assert (real.reason, real.leg, real.account) == (
                expected.reason,
                expected.leg,
                account,
            )
            return
        assert not isinstance(real, Refusal), f"the model posts, the database refuses {real}"
        self.last = (legs, real.transfer_ids)
        self.posted_keys.append(self.keys)
        first = len(self.book.transfers) + 1
        self.transfers |= dict(enumerate(real.transfer_ids, start=first))
        self.book = expected

    def translated(self, leg: Leg) -> Leg:
        return Leg(
            leg.kind,
            leg.amount,
            None if leg.debit is None else self.ids.get(leg.debit, 10**12),
            None if leg.credit is None else self.ids.get(leg.credit, 10**12),
            None if leg.pending_id is None else self.transfers.get(leg.pending_id, 10**12),
            leg.final,
            leg.expires_at,
        )

    accounts = st.integers(1, len(ASSETS) + 1)  # one too many: an unknown account
    near = st.integers(0, 8)  # how far back the hold is that a leg names

    def hold_back(self, near: int) -> int:
        """A hold that exists, mostly; else a transfer that is none."""
        pendings = [t.id for t in self.book.transfers if t.kind is TransferKind.PENDING and t.pending_id is None]
        return pendings[-1 - near] if near < len(pendings) else near

    @rule(amount=st.integers(1, 200), account=st.sampled_from([2, 3]))
    def top_up(self, amount: int, account: int) -> None:
        self.post([ledger.posted(1, account, amount)])

    @rule(debit=accounts, credit=accounts, amount=amounts)
    def move(self, debit: int, credit: int, amount: int) -> None:
        self.post([ledger.posted(debit, credit, amount)])

    @rule(debit=accounts, credit=accounts, amount=amounts, seconds=st.integers(1, 100))
    def hold(self, debit: int, credit: int, amount: int, seconds: int) -> None:
        self.post([ledger.pending(debit, credit, amount, self.at + timedelta(seconds=seconds))])

    @rule(near=near, amount=amounts, final=st.booleans())
    def take(self, near: int, amount: int, final: bool) -> None:
        self.post([ledger.post(self.hold_back(near), amount, final=final)])

    @rule(near=near, amount=amounts)
    def extend(self, near: int, amount: int) -> None:
        self.post([ledger.extend(self.hold_back(near), amount)])

    @rule(near=near)
    def give_up(self, near: int) -> None:
        self.post([ledger.void(self.hold_back(near))])

    @rule(near=near)
    def run_out(self, near: int) -> None:
        self.post([ledger.expire(self.hold_back(near))])

    @rule(
        pairs=st.lists(st.tuples(accounts, accounts, st.integers(1, 60)), min_size=2, max_size=5),
        near=near,
    )
    def several_at_once(self, pairs: list[tuple[int, int, int]], near: int) -> None:
        legs = [ledger.posted(*pair) for pair in pairs]
        self.post([*legs, ledger.post(self.hold_back(near), 1, final=False)])

    @rule(pairs=st.lists(st.tuples(accounts, accounts, amounts), min_size=5, max_size=9))
    def a_batch(self, pairs: list[tuple[int, int, int]]) -> None:
        self.post([ledger.posted(*pair) for pair in pairs])

    @rule(pairs=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 20)), min_size=5, max_size=9))
    def a_batch_that_mostly_fits(self, pairs: list[tuple[int, int]]) -> None:
        # Money goes round between two bounded accounts, so both sides of every leg are counted.
        turns = {1: (1, 2), 2: (2, 3), 3: (3, 2)}
        self.post([ledger.posted(*turns[account], amount) for account, amount in pairs])

    @precondition(lambda self: self.last is not None)
    @rule(same=st.booleans())
    def send_the_last_again(self, same: bool) -> None:
        assert self.last is not None
        legs, numbers = self.last
        key = self.posted_keys[-1]

        async def again(tx: Any) -> Any:
            return await ledger_store.post(
                tx, scope="test", key=str(key), request=key if same else -key,
                legs=[self.translated(leg) for leg in legs], at=self.at,
            )  # fmt: skip

        if same:
            real = self.run(again)
            assert (real.transfer_ids, real.replayed) == (numbers, True)
        else:
            with pytest.raises(Conflict):
                self.run(again)

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)

    @rule()
    def seal(self) -> None:
        self.run(lambda tx: ledger_store.seal(tx, now=self.at, at_most=7))

    @invariant()
    def books_are_equal(self) -> None:
        if not self.ids:
            return
        posted = self.run(ledger_store.posted_balances)
        assert posted == {
            account.code: self.book.balances.get(number, ledger.Balance()).posted
            for number, account in self.book.accounts.items()
        }
        transfers = self.book.transfers
        balances, left = replay(transfers)
        assert left == {number: one.left for number, one in self.book.open.items()}
        findings = [
            *check_conservation(self.book.accounts, balances),
            *check_floors(self.book.accounts, balances),
            *check_replay(self.book.balances, balances),
            *check_resolutions(transfers),
        ]
        assert findings == []

    def teardown(self) -> None:
        try:
            if self.ids:
                assert self.run(ledger_audit.check_ledger_tables) == []
        finally:
            self.runner.run(self.db.close())
            self.runner.close()


@pytest.fixture
def machine_url(postgres: TestServer) -> Iterator[str]:
    with postgres.database() as url:
        yield url


def test_the_ledger_in_the_database_equals_the_ledger_on_paper(
    machine_url: str,
) -> None:
    class OnThisDatabase(LedgerMachine):
        url = machine_url

    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=40,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
