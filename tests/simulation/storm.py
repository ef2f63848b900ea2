"""A storm from a seed: what firms, users, machines, the network, the cluster and the controllers do to each other.

After every event the checks look at the books and at the machines. At last the sky clears: no faults and no arrivals
any more, and every job has to come to its end.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from unittest import mock

from kit import ids
from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.ids import new_id
from kit.units import MicroYuan
from quotas import cash
from quotas.cohort_tree import place
from quotas.vocabulary import CohortName
from scheduler.fleet import cordon, uncordon
from scheduler.loop import Controller
from scheduler.retries import RetryPolicy
from scheduler.terms import Terms
from scheduler.vocabulary import JOB_OVER, NodeId, WorkloadId
from tests.simulation import checks
from tests.simulation.cluster import Cluster, Machines
from tests.simulation.leaders import Leaders
from tests.simulation.programs import Fate, Nodes, Verdict
from tests.support.money import yuan
from tests.support.scheduling import KEY, City, Firm, make_city

START = datetime(2026, 11, 2, 2, tzinfo=UTC)
SLOTS = {"n1": 2, "n2": 2, "n3": 4}
QUOTAS = (3, 2, 1, 0)
TERMS = Terms(
    lease_seconds=10,
    heartbeat_seconds=2,
    margin_seconds=3,
    grace_seconds=4,
    start_timeout_seconds=40,
    node_silence_seconds=6,
    money_pause_seconds=5,
    retry=RetryPolicy(pause_seconds=1),
)
"""Everything ends sooner than in a city, so that more of it comes together."""
CALM_SECONDS_MAX = 4 * 3600
SHAPES: tuple[dict[str, float], ...] = (
    {}, {"gpus": 2}, {"gpus": 0.5}, {"gpus": 0.3}, {"workers": 2}, {"workers": 3}, {"workers": 4, "workers_min": 2},
)  # fmt: skip


class Wrecked(AssertionError):
    """An invariant did not hold. The message has the command that shows it again, and the last events."""


@dataclass
class Storm:
    """One seed's world and what happens in it."""

    seed: int
    city: City
    leaders: Leaders
    cluster: Cluster
    nodes: Nodes
    machines: Machines
    random: Random
    fates: dict[WorkloadId, Fate]
    firms: list[Firm] = field(default_factory=list[Firm])
    jobs: list[tuple[Firm, str]] = field(default_factory=list[tuple[Firm, str]])
    cancelled: set[str] = field(default_factory=set[str])
    told: list[str] = field(default_factory=list[str])
    used: list[int] = field(default_factory=list[int])
    ledger_every: int = 1

    async def begin(self) -> None:
        """Four firms of one cohort, three machines."""
        for name, slots in SLOTS.items():
            self.city.add_node(name, slots)
        now = self.city.clock.now()
        self.firms = [await self.city.firm(quota=quota, paid_in=yuan(3)) for quota in QUOTAS]
        async with self.city.db.transaction() as tx:
            cohort = CohortName("studios")
            await place(tx, cohort, parent=None, by=SYSTEM, now=now)
            for firm in self.firms:
                await place(tx, firm.id, parent=cohort, by=SYSTEM, now=now)
        await self.leaders.step()

    async def run(self, events: int) -> None:
        """So many events, then calm."""
        await self.begin()
        actions = self._actions()
        doing, weights = [one for one, _ in actions], [weight for _, weight in actions]
        for number in range(events):
            (action,) = self.random.choices(doing, weights)
            self.told.append(f"{number}: {self.city.clock.now():%H:%M:%S} {action.__name__}")
            settled = await action()
            await self._look(settled=bool(settled), ledger=number % self.ledger_every == 0)
        await self._calm_down()

    def _actions(self) -> list[tuple[Callable[[], Awaitable[bool | None]], int]]:
        return [
            (self.time_passes, 30),
            (self.a_controller_looks, 26),
            (self.jobs_are_submitted, 12),
            (self.a_controller_is_killed, 10),
            (self.two_believe_they_lead, 6),
            (self.a_job_is_cancelled, 2),
            (self.a_job_is_paused_or_resumed, 3),
            (self.a_program_dies, 2),
            (self.a_machine_dies_or_returns, 3),
            (self.a_machine_is_cut_off_or_heard_again, 6),
            (self.a_machine_is_closed_or_opened, 2),
            (self.the_head_dies, 1),
            (self.the_cluster_falls_silent_or_answers, 1),
            (self.money_comes, 1),
        ]

    async def time_passes(self) -> None:
        """A while, mostly short."""
        await self._pass(timedelta(seconds=self.random.choice((1, 1, 2, 2, 3, 5, 8, 30))))

    async def a_controller_looks(self) -> bool:
        """A whole round of the one in office."""
        await self.leaders.step()
        await self._deliver()
        return self.cluster.answers

    async def jobs_are_submitted(self) -> None:
        """By any firm, some at once."""
        firm = self.random.choice(self.firms)
        for _ in range(self.random.choice((1, 1, 2, 4))):
            await self._submit(firm)

    async def _submit(self, firm: Firm) -> None:
        """Of any shape, some for longer than their maximum, some broken."""
        most = self.random.choice((10, 20, 40, 80))
        seconds = self.random.uniform(0.5, most * 1.1)
        verdict = self.random.choices(list(Verdict), (85, 10, 5))[0]
        shape = self.random.choice(SHAPES)
        job_id = await self.city.submit(
            firm,
            key=f"{self.seed}-{len(self.jobs)}",
            max_runtime_seconds=most,
            params={"command": ["true"], "runtime_seconds_max": most},
            priority=self.random.randint(-2, 2),
            qos=self.random.choice(("standard", "standard", "interruptible")),
            **shape,
        )
        self.fates[WorkloadId(job_id)] = Fate(min(seconds, float(most)), verdict)
        self.jobs.append((firm, job_id))

    async def a_controller_is_killed(self) -> None:
        """Somewhere in its round; the next one begins from what it finds."""
        died = await self.leaders.step_and_die(self.random.randrange(60))
        self.told[-1] += " (killed)" if died else " (got through)"
        await self._deliver()

    async def two_believe_they_lead(self) -> None:
        """The old one acts on facts that are not true any more."""
        await self.leaders.step_both(self.random.randrange(12))
        await self._deliver()

    async def a_job_is_cancelled(self) -> None:
        """Any of them, over or not."""
        if self.jobs:
            firm, job_id = self.random.choice(self.jobs)
            self.cancelled.add(job_id)
            answer = await firm.http.post(f"/api/jobs/{job_id}/cancel")
            assert answer.status_code in (200, 409), answer.text

    async def a_job_is_paused_or_resumed(self) -> None:
        """Any of them, whatever it is doing."""
        if self.jobs:
            firm, job_id = self.random.choice(self.jobs)
            answer = await firm.http.post(f"/api/jobs/{job_id}/{self.random.choice(('pause', 'resume'))}")
            assert answer.status_code in (200, 409), answer.text

    async def a_program_dies(self) -> None:
        """A runner's process ends without a word."""
        if self.nodes.alive:
            self.nodes.kill(self.random.choice(self.nodes.alive))

    async def a_machine_dies_or_returns(self) -> None:
        """With all that runs on it."""
        node = NodeId(self.random.choice(list(SLOTS)))
        if node in self.machines.away:
            self.machines.bring_back(node)
        else:
            self.machines.lose(node)

    async def a_machine_is_cut_off_or_heard_again(self) -> None:
        """Its programs run on, but nobody hears them."""
        self.nodes.cut_off ^= {NodeId(self.random.choice(list(SLOTS)))}

    async def a_machine_is_closed_or_opened(self) -> None:
        """By its centre, with or without moving what runs there."""
        node, now = self.random.choice(list(SLOTS)), self.city.clock.now()
        async with self.city.db.transaction() as tx:
            if self.random.random() < 0.5:
                await cordon(tx, node, "maintenance", drain=self.random.random() < 0.5, now=now)
            else:
                await uncordon(tx, node, now=now)

    async def the_head_dies(self) -> None:
        """And comes back with nothing."""
        self.machines.lose_head()

    async def the_cluster_falls_silent_or_answers(self) -> None:
        """The port raises Unavailable, whatever it is asked."""
        self.cluster.answers = not self.cluster.answers

    async def money_comes(self) -> None:
        """To one firm."""
        await self._top_up(self.random.choice(self.firms), yuan(1))

    async def _top_up(self, firm: Firm, amount: int) -> None:
        async with self.city.db.transaction() as tx:
            await cash.record_topup(
                tx,
                key=new_id("op"),
                firm_id=firm.id,
                amount=MicroYuan(amount),
                evidence="bank slip",
                by="test",
                now=self.city.clock.now(),
            )

    async def _pass(self, span: timedelta) -> None:
        """Time passes for machines and letters, instant by instant."""
        until = self.city.clock.now() + span
        while (now := self.city.clock.now()) < until:
            self.city.clock.advance(self.nodes.next_instant(until) - now)
            await self._deliver()
            self._compare_machines()

    async def _deliver(self) -> None:
        await self.machines.deliver()
        await self.nodes.act(self.city.terms)
        self.machines.reap()

    def _compare_machines(self) -> None:
        self.hold(checks.one_runs_and_fits(self.nodes.programs, self.city.clock.now()))

    async def _look(self, *, settled: bool, ledger: bool) -> None:
        self._compare_machines()
        now = self.city.clock.now()
        async with self.city.db.transaction() as tx:
            found = await checks.books(tx, settled=settled)
            found += await checks.charged_no_more_than_ran(tx, self.nodes.programs, now)
            used = [row.used_milli for row in await checks.rows(tx, checks.USED)]
            nominal = [quota * 1000 for quota in QUOTAS]
            found += checks.lends_only_what_is_there(used, self.used, nominal)
            if ledger:
                found += await checks.ledger(tx)
        self.used = used
        self.hold(found)

    def hold(self, found: list[str]) -> None:
        """Raises Wrecked when anything was found."""
        if found:
            raise Wrecked("\n".join(found))

    async def _calm_down(self) -> None:
        """No more faults, no more arrivals, machines and money for all: everything comes to its end."""
        self.cluster.clear_up()
        self.nodes.weather.clear_up()
        self.nodes.cut_off.clear()
        now = self.city.clock.now()
        for node in list(self.machines.away):
            self.machines.bring_back(node)
        for firm in self.firms:
            await self._top_up(firm, yuan(100))
        for firm, job_id in self.jobs:
            answer = await firm.http.post(f"/api/jobs/{job_id}/resume")
            assert answer.status_code in (200, 409), answer.text
        deadline = now + timedelta(seconds=CALM_SECONDS_MAX)
        while open_jobs := await self._open_jobs():
            self.hold([f"S3: starved: {job}" for job in open_jobs] if self.city.clock.now() > deadline else [])
            await self._open_machines()
            await self.a_controller_looks()
            await self._look(settled=True, ledger=False)
            await self._pass(timedelta(seconds=15))
        await self._pass(timedelta(seconds=300))  # late letters too
        for _ in range(3):
            await self.a_controller_looks()
        await self._look(settled=True, ledger=True)
        self.hold([f"it still runs: {program.attempt_id}" for program in self.nodes.alive])
        ran = {str(program.workload_id) for program in self.nodes.programs}
        self.hold([f"S3: over without having run: {job}" for _, job in self.jobs if job not in ran | self.cancelled])

    async def _open_machines(self) -> None:
        """Their centres look after them: what was closed, by hand or for failures, is opened."""
        async with self.city.db.transaction() as tx:
            for node in SLOTS:
                await uncordon(tx, node, now=self.city.clock.now())

    async def _open_jobs(self) -> list[str]:
        over = ", ".join(f"'{state}'" for state in sorted(JOB_OVER))
        query = f"SELECT id, state, wait_reason FROM scheduler.workload WHERE state NOT IN ({over}) ORDER BY id"
        async with self.city.db.transaction() as tx:
            return [str(row) for row in await checks.rows(tx, query)]


async def ride(seed: int, events: int, url: str, folder: Path, *, ledger_every: int = 1) -> Storm:
    """Let one seed's storm pass over an empty, migrated database. Raises Wrecked."""
    clock = FixedClock(START)
    with identifiers(seed, clock), no_step_fails() as failed:
        db = Database(url, pool_size=3)
        city = await make_city(db, clock, folder, TERMS)
        cluster, fates = Cluster(seed=seed), dict[WorkloadId, Fate]()
        city.runtime = cluster
        nodes = Nodes(city, Random(f"{seed} network"))

        def controller(leaders_db: Database) -> Controller:
            return Controller(leaders_db, city.blobs, clock, cluster, cluster, city.terms, KEY)

        leaders = Leaders(controller, url)
        machines = Machines(city, cluster, nodes, fates)
        storm = Storm(seed, city, leaders, cluster, nodes, machines, Random(seed), fates, ledger_every=ledger_every)
        try:
            await storm.run(events)
            storm.hold(failed)
        except Exception as error:
            again = f"python -m tests.simulation --seed {seed} --events {events}"
            last = "\n".join(storm.told[-12:])
            raise Wrecked(
                f"{error}\nIn the controller: {failed}\nShow it again: {again}\nLast events:\n{last}"
            ) from error
        finally:
            await leaders.close()
            await db.close()
    return storm


@contextmanager
def identifiers(seed: int, clock: FixedClock) -> Iterator[None]:
    """Identifiers come from the seed and the storm's clock, as ties are broken by them."""
    random = Random(f"{seed} identifiers")
    time = SimpleNamespace(time_ns=lambda: int(clock.now().timestamp() * 1e9))
    with mock.patch.object(ids, "secrets", random_bits(random)), mock.patch.object(ids, "time", time):
        yield


def random_bits(random: Random) -> SimpleNamespace:
    """What `kit.ids` uses of `secrets`."""
    assert hasattr(secrets, "randbits"), "kit.ids takes its bits from there"
    return SimpleNamespace(randbits=random.getrandbits)


@contextmanager
def no_step_fails() -> Iterator[list[str]]:
    """Collects what the loop logged as an error and went on from: in a storm nothing may go wrong unforeseen."""
    failed: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            failed.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")

    listening, logger = Listening(logging.ERROR), logging.getLogger("scheduler")
    logger.addHandler(listening)
    try:
        yield failed
    finally:
        logger.removeHandler(listening)
