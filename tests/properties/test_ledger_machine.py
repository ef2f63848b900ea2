"""The ledger in PostgreSQL does what the ledger on paper does, whatever is asked of it and in whatever order."""

import itertools
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from sqlalchemy.ext.asyncio import AsyncSession

from kit.errors import Conflict
from kit.units import MAX_AMOUNT
from quotas import ledger
from quotas.adapters import ledger_store
from quotas.chart import AccountSpec
from quotas.ledger import Account, Book, Leg, Refusal, TransferKind
from quotas.ledger_checks import check_conservation, check_floors, check_replay, check_resolutions, replay
from tests.support.databases import TestServer
from tests.support.kills import START, Kill, KilledMachine, run_killed

ASSETS = ("CNY", "CNY", "CNY", "CNY", "GPU_MS:a/x")
BOUNDED = (False, True, True, False, True)

numbers = itertools.count(1)
kills = st.none() | st.builds(Kill, st.integers(0, 2), st.sampled_from([False, False, False, True]))
"""A posting is one or two statements and the COMMIT."""
amounts = st.one_of(st.integers(1, 60), st.sampled_from([-1, 0, MAX_AMOUNT, MAX_AMOUNT + 1]))


class LedgerMachine(KilledMachine):
    """Every rule is posted to both ledgers; afterwards, and wherever it was killed, they must be the same."""

    def begin(self) -> None:
        self.name = f"ledger {next(numbers)}"
        specs = [
            AccountSpec(f"{self.name}:{n}", asset, "test", bounded)
            for n, (asset, bounded) in enumerate(zip(ASSETS, BOUNDED, strict=True), start=1)
        ]
        self.book = Book({n: Account(n, spec.code, spec.asset, spec.bounded) for n, spec in enumerate(specs, start=1)})
        opened = self.run(lambda tx: ledger_store.accounts(tx, specs, at=START))
        self.ids = {n: opened[spec] for n, spec in enumerate(specs, start=1)}  # model's account → database's
        self.transfers: dict[int, int] = {}  # model's transfer → database's
        self.posted_keys: list[str] = []
        self.last: tuple[list[Leg], tuple[int, ...]] | None = None

    def post(self, legs: list[Leg], kill: Kill | None) -> None:
        key = f"{self.name} {next(numbers)}"
        expected = ledger.post_legs(self.book, legs, at=self.at)
        real = self.run(
            lambda tx: ledger_store.post(
                tx, scope="test", key=key, request=key, legs=[self.translated(leg) for leg in legs], at=self.at
            ),
            kill,
        )
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
        self.posted_keys.append(key)
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

    @rule(amount=st.integers(1, 200), account=st.sampled_from([2, 3]), kill=kills)
    def top_up(self, amount: int, account: int, kill: Kill | None) -> None:
        self.post([ledger.posted(1, account, amount)], kill)

    @rule(debit=accounts, credit=accounts, amount=amounts, kill=kills)
    def move(self, debit: int, credit: int, amount: int, kill: Kill | None) -> None:
        self.post([ledger.posted(debit, credit, amount)], kill)

    @rule(debit=accounts, credit=accounts, amount=amounts, seconds=st.integers(1, 100), kill=kills)
    def hold(self, debit: int, credit: int, amount: int, seconds: int, kill: Kill | None) -> None:
        self.post([ledger.pending(debit, credit, amount, self.at + timedelta(seconds=seconds))], kill)

    @rule(near=near, amount=amounts, final=st.booleans(), kill=kills)
    def take(self, near: int, amount: int, final: bool, kill: Kill | None) -> None:
        self.post([ledger.post(self.hold_back(near), amount, final=final)], kill)

    @rule(near=near, amount=amounts, kill=kills)
    def extend(self, near: int, amount: int, kill: Kill | None) -> None:
        self.post([ledger.extend(self.hold_back(near), amount)], kill)

    @rule(near=near, kill=kills)
    def give_up(self, near: int, kill: Kill | None) -> None:
        self.post([ledger.void(self.hold_back(near))], kill)

    @rule(near=near, kill=kills)
    def run_out(self, near: int, kill: Kill | None) -> None:
        self.post([ledger.expire(self.hold_back(near))], kill)

    @rule(
        pairs=st.lists(st.tuples(accounts, accounts, st.integers(1, 60)), min_size=2, max_size=5),
        near=near,
        kill=kills,
    )
    def several_at_once(self, pairs: list[tuple[int, int, int]], near: int, kill: Kill | None) -> None:
        legs = [ledger.posted(*pair) for pair in pairs]
        self.post([*legs, ledger.post(self.hold_back(near), 1, final=False)], kill)

    @rule(pairs=st.lists(st.tuples(accounts, accounts, amounts), min_size=5, max_size=9), kill=kills)
    def a_batch(self, pairs: list[tuple[int, int, int]], kill: Kill | None) -> None:
        self.post([ledger.posted(*pair) for pair in pairs], kill)

    @rule(pairs=st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 20)), min_size=5, max_size=9), kill=kills)
    def a_batch_that_mostly_fits(self, pairs: list[tuple[int, int]], kill: Kill | None) -> None:
        # Money goes round between two bounded accounts, so both sides of every leg are counted.
        turns = {1: (1, 2), 2: (2, 3), 3: (3, 2)}
        self.post([ledger.posted(*turns[account], amount) for account, amount in pairs], kill)

    @precondition(lambda self: self.last is not None)
    @rule(same=st.booleans(), kill=kills)
    def send_the_last_again(self, same: bool, kill: Kill | None) -> None:
        assert self.last is not None
        legs, numbers = self.last
        key = self.posted_keys[-1]

        async def again(tx: Any) -> Any:
            return await ledger_store.post(
                tx, scope="test", key=key, request=key if same else -1,
                legs=[self.translated(leg) for leg in legs], at=self.at,
            )  # fmt: skip

        if same:
            real = self.run(again, kill)
            assert (real.transfer_ids, real.replayed) == (numbers, True)
        else:
            with pytest.raises(Conflict):
                self.run(again, kill)

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.at += timedelta(seconds=seconds)

    @rule(kill=kills)
    def seal(self, kill: Kill | None) -> None:
        self.run(lambda tx: ledger_store.seal(tx, now=self.at, at_most=7), kill)

    async def compare(self, tx: AsyncSession) -> None:
        assert await ledger_store.posted_balances(tx, f"{self.name}:%") == {
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


def test_the_ledger_in_the_database_equals_the_ledger_on_paper_wherever_it_is_killed(postgres: TestServer) -> None:
    assert run_killed(LedgerMachine, postgres, examples=20) > 0, "some transaction was killed"
