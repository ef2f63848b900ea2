"""The conversation between a replica host and serving, on a real database."""

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from kit.auth import SYSTEM
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict, InvalidInput, NotFound
from serving import adapter_catalogue, api, losses, replica_sync
from serving.counting import ENGINE_LAG, Verdict
from serving.engines import Counters, EngineUsage
from serving.replica_sync import Reply, Report
from serving.vocabulary import AdapterState, ReplicaCommand, ReplicaState, RouteTable
from tests.support.money import open_firm, publish_prices
from tests.support.serving import KEY, Host, add_adapter, add_model, add_replica, deploy

S = ReplicaState


class Stage:
    """A base model, a deployment and one replica whose host speaks."""

    def __init__(self, db: Database, clock: FixedClock, host: Host) -> None:
        self.db, self.clock, self.host = db, clock, host

    async def say(self, report: Report, host: Host | None = None) -> Reply:
        self.clock.advance(timedelta(seconds=1))
        async with self.db.transaction() as tx:
            return await replica_sync.sync(tx, (host or self.host).identity, report, now=self.clock.now())

    async def ready(self, **changes: object) -> Reply:
        return await self.say(self.host.report(S.READY, **changes))

    async def routes(self) -> RouteTable:
        async with self.db.transaction() as tx:
            return await api.route_table(tx)

    async def state(self) -> str:
        return str(await self.one("SELECT state FROM serving.replica WHERE id = :id", id=self.host.replica_id))

    async def one(self, sql: str, **values: object) -> object:
        async with self.db.transaction() as tx:
            return (await tx.execute(text(sql), values)).scalar_one_or_none()

    async def adapter(self, name: str, firm: str | None = None) -> tuple[str, str]:
        async with self.db.transaction() as tx:
            firm = firm or await open_firm(tx, now=self.clock.now())
            return firm, await add_adapter(tx, firm, name, now=self.clock.now())


@pytest.fixture
async def stage(db: Database, clock: FixedClock) -> Stage:
    """A shared deployment with one pending replica."""
    async with db.transaction() as tx:
        await add_model(tx, now=clock.now())
        deployment = await deploy(tx, now=clock.now())
        return Stage(db, clock, await add_replica(tx, deployment, now=clock.now()))


async def test_a_replica_is_routed_to_only_once_its_host_says_ready(stage: Stage) -> None:
    for state in (S.STARTING, S.WARMING):
        reply = await stage.say(stage.host.report(state))
        assert reply.command is ReplicaCommand.RUN
        assert await stage.state() == state
        assert (await stage.routes()).replicas == ()
    await stage.ready()
    (route,) = (await stage.routes()).replicas
    assert (route.id, route.url, route.engine_key) == (stage.host.replica_id, "http://127.0.0.1:40001", KEY)
    assert route.engine_start == stage.host.engine_start
    assert KEY not in repr(route)


async def test_a_host_that_reports_rarely_may_skip_states_but_not_the_proof(stage: Stage) -> None:
    with pytest.raises(InvalidInput):
        await stage.say(Report(S.READY))
    assert await stage.state() == S.PENDING
    await stage.ready()
    assert await stage.state() == S.READY


async def test_the_route_tables_version_changes_when_and_only_when_routes_do(stage: Stage) -> None:
    versions = [(await stage.routes()).version]
    await stage.ready()
    versions.append((await stage.routes()).version)
    await stage.ready(requests_running=3, counters=Counters(50, 20, 10, 1))
    assert (await stage.routes()).version == versions[-1]
    stage.host.engine_start = "eng_01restarted"
    await stage.ready()
    versions.append((await stage.routes()).version)
    assert len(set(versions)) == 3


async def test_an_engine_that_restarts_is_not_routed_to_until_it_is_ready_again(stage: Stage) -> None:
    await stage.ready()
    stage.host.engine_start = "eng_01restarted"
    await stage.say(stage.host.report(S.STARTING, url=None, engine_key=None, counters=None))
    assert (await stage.routes()).replicas == ()
    await stage.ready(engine_key=KEY + "2")
    (route,) = (await stage.routes()).replicas
    assert route.engine_key == KEY + "2"


async def test_a_new_attempt_takes_over_and_the_old_one_is_told_to_end(stage: Stage) -> None:
    await stage.ready()
    old, new = stage.host, stage.host.successor()
    await stage.say(new.report(S.STARTING), new)
    assert await stage.state() == S.STARTING
    with pytest.raises(Conflict) as refusal:
        await stage.say(old.report(S.READY), old)
    assert refusal.value.code == "fence_lost"
    assert (await stage.routes()).replicas == ()
    await stage.say(new.report(S.READY), new)
    assert len((await stage.routes()).replicas) == 1


async def test_an_attempt_that_is_no_replicas_learns_nothing(stage: Stage) -> None:
    stranger = Host("rep_x", "rep_unknown")
    with pytest.raises(NotFound):
        await stage.say(stranger.report(), stranger)


async def test_a_failing_engine_waits_for_its_next_attempt_with_the_reason(stage: Stage) -> None:
    await stage.ready()
    await stage.say(Report(S.FAILED, reason="CUDA out of memory"))
    assert await stage.state() == S.PENDING
    assert await stage.one("SELECT reason FROM serving.replica") == "CUDA out of memory"
    assert (await stage.routes()).replicas == ()


async def test_a_replica_whose_place_is_taken_back_drains_and_is_not_routed_to(stage: Stage) -> None:
    await stage.ready()
    stage.host.stop_requested = True
    reply = await stage.ready()
    assert reply.command is ReplicaCommand.DRAIN
    assert await stage.state() == S.PENDING
    assert (await stage.routes()).replicas == ()


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1:1", "http://127.0.0.1", "http://a:80/v1", "http://u:p@host:80", "http://host:80?x", "x"]
)
async def test_an_address_that_is_more_than_host_and_port_is_refused(stage: Stage, url: str) -> None:
    with pytest.raises(InvalidInput):
        await stage.ready(url=url)
    assert await stage.state() == S.PENDING


async def test_adapters_are_ordered_and_routed_to_once_loaded(stage: Stage) -> None:
    firm, adapter = await stage.adapter("lore")
    reply = await stage.ready()
    assert [row.id for row in reply.adapters] == [adapter]
    (route,) = (await stage.routes()).replicas
    assert route.adapters_ready == frozenset()
    await stage.ready(loading=frozenset({adapter}))
    assert (await stage.routes()).replicas[0].adapters_ready == frozenset()
    await stage.ready(loaded=frozenset({adapter}))
    table = await stage.routes()
    assert table.replicas[0].adapters_ready == {adapter}
    assert table.adapters[(firm, "lore")].id == adapter
    assert list(table.adapters) == [(firm, "lore")]


async def test_beyond_the_engines_room_the_last_wanted_adapters_are_loaded(stage: Stage) -> None:
    firm, first = await stage.adapter("first")
    stage.clock.advance(timedelta(minutes=1))
    _, second = await stage.adapter("second", firm)
    stage.clock.advance(timedelta(minutes=1))
    _, third = await stage.adapter("third", firm)
    reply = await stage.ready()
    assert {row.id for row in reply.adapters} == {second, third}
    await stage.ready(loaded=frozenset({second, third}))
    async with stage.db.transaction() as tx:
        now = stage.clock.now() + timedelta(minutes=1)
        assert await api.note_adapter_use(tx, {first: now, third: now}) == 2
        assert await api.note_adapter_use(tx, {first: now - timedelta(hours=1)}) == 0, "use never moves back"
    reply = await stage.ready(loaded=frozenset({second, third}))
    assert {row.id for row in reply.adapters} == {first, third}
    assert (await stage.routes()).replicas[0].adapters_ready == {third}
    await stage.ready(loaded=frozenset({first, third}))
    assert (await stage.routes()).replicas[0].adapters_ready == {first, third}


async def test_an_adapter_the_engine_refuses_is_not_tried_on_it_again(stage: Stage) -> None:
    firm, adapter = await stage.adapter("lore")
    await stage.ready()
    reply = await stage.ready(failed={adapter: "the shapes do not fit"})
    assert reply.adapters == ()
    assert (await stage.ready()).adapters == ()
    assert await stage.one("SELECT reason FROM serving.adapter_load") == "the shapes do not fit"
    stage.host.engine_start = "eng_01restarted"
    assert [row.id for row in (await stage.ready()).adapters] == [adapter]
    assert (firm, "lore") in (await stage.routes()).adapters


async def test_a_deleted_adapter_leaves_the_routes_at_once_and_the_engine_a_little_later(stage: Stage) -> None:
    firm, adapter = await stage.adapter("lore")
    loaded = frozenset({adapter})
    await stage.ready()
    await stage.ready(loaded=loaded)

    async def finish(tx: AsyncSession) -> list[str]:
        return await adapter_catalogue.finish_retirements(tx, now=stage.clock.now())

    async with stage.db.transaction() as tx:
        await adapter_catalogue.retire(tx, adapter, by=SYSTEM, now=stage.clock.now())
        assert await finish(tx) == []
    table = await stage.routes()
    assert table.adapters == {} and table.replicas[0].adapters_ready == frozenset()
    assert [row.id for row in (await stage.ready(loaded=loaded)).adapters] == [adapter], "gateways may not know yet"
    stage.clock.advance(replica_sync.UNLOAD_AFTER)
    assert (await stage.ready(loaded=loaded)).adapters == ()
    async with stage.db.transaction() as tx:
        assert await finish(tx) == [], "the engine still has it"
    await stage.ready()
    async with stage.db.transaction() as tx:
        assert await finish(tx) == [adapter]
        gone = await adapter_catalogue.list_adapters(tx, firm)
    assert gone == []
    assert await stage.one("SELECT state FROM serving.adapter") == AdapterState.DELETED


async def test_a_dedicated_replica_never_loads_another_firms_adapter(db: Database, clock: FixedClock) -> None:
    async with db.transaction() as tx:
        await add_model(tx, now=clock.now())
        mine, other = await open_firm(tx, now=clock.now()), await open_firm(tx, now=clock.now())
        host = await add_replica(tx, await deploy(tx, now=clock.now(), firm_id=mine), now=clock.now())
        await add_adapter(tx, other, "lore", now=clock.now())
        own = await add_adapter(tx, mine, "lore", now=clock.now())
    reply = await Stage(db, clock, host).ready()
    assert [row.id for row in reply.adapters] == [own]


async def test_only_an_ordered_adapter_can_be_fetched(stage: Stage) -> None:
    _, adapter = await stage.adapter("lore")
    async with stage.db.transaction() as tx:
        with pytest.raises(NotFound):
            await replica_sync.ordered_adapter(tx, stage.host.identity, adapter)
    await stage.ready()
    async with stage.db.transaction() as tx:
        assert (await replica_sync.ordered_adapter(tx, stage.host.identity, adapter)).id == adapter
        with pytest.raises(NotFound):
            await replica_sync.ordered_adapter(tx, stage.host.successor().identity, adapter)


async def test_an_engines_counters_only_grow_and_end_with_it(stage: Stage) -> None:
    await stage.ready(counters=Counters(100, 40, 10, 1))
    await stage.ready(counters=Counters(90, 50, 10, 1))
    first = stage.host.engine_start
    stage.host.engine_start = "eng_01restarted"
    await stage.ready(counters=Counters(7, 3, 7, 1))
    async with stage.db.transaction() as tx:
        counts = {str(count.engine_start): count for count in await api.engine_counters(tx)}
    assert (counts[first].prompt_tokens, counts[first].generation_tokens, counts[first].ended) == (100, 50, True)
    assert counts["eng_01restarted"].ended is False
    assert counts["eng_01restarted"].warmup_prompt_tokens == 7


async def test_tokens_billed_are_held_against_the_engines_own_count(stage: Stage) -> None:
    await stage.ready()
    usage = [EngineUsage(gateway, stage.host.engine_start, 30, 20, stage.clock.now()) for gateway in ("gw-1", "gw-2")]
    async with stage.db.transaction() as tx:
        await api.record_engine_usage(tx, usage)
        await api.record_engine_usage(tx, usage[:1])
        (line,) = await api.reconcile(tx)
    assert line.verdict is Verdict.OPEN, "the engine has not reported since"
    stage.clock.advance(ENGINE_LAG)
    await stage.ready(counters=Counters(99, 61, 10, 1))
    async with stage.db.transaction() as tx:
        (line,) = await api.reconcile(tx)
    assert (line.verdict, line.difference_prompt) == (Verdict.OVERBILLED, -1)
    await stage.ready(counters=Counters(100, 61, 10, 1), requests_running=0)
    async with stage.db.transaction() as tx:
        (line,) = await api.reconcile(tx)
    assert (line.verdict, line.difference_prompt, line.difference_generation) == (Verdict.EXACT, 0, 0)
    assert (line.warmup_prompt, line.warmup_generation) == (10, 1)


async def test_what_an_ended_engine_counted_and_nobody_was_billed_is_booked_once_and_set_right_when_usage_comes_late(
    stage: Stage,
) -> None:
    await publish_prices(stage.db, now=stage.clock.now())
    await stage.ready()
    start = stage.host.engine_start

    async def use() -> None:
        usage = EngineUsage("gw-1", start, 30, 20, stage.clock.now())
        async with stage.db.transaction() as tx:
            await api.record_engine_usage(tx, [usage])

    async def booked() -> list[tuple[str, int, int, int | None]]:
        async with stage.db.transaction() as tx:
            rows = await losses.losses(tx)
        return [(row.engine_start, row.prompt_tokens, row.generation_tokens, row.micro_yuan) for row in rows]

    await use()
    stage.clock.advance(ENGINE_LAG * 2)
    await stage.ready(counters=Counters(110, 65, 10, 1))
    stage.host.engine_start = "eng_01restarted"
    await stage.ready(counters=Counters(7, 3, 7, 3))
    assert await losses.book(stage.db, now=stage.clock.now()) == 1
    assert await booked() == [(start, 70, 44, 70 + 2 * 44)]
    assert await losses.book(stage.db, now=stage.clock.now()) == 0, "what is booked is not booked again"
    await use()
    assert await losses.book(stage.db, now=stage.clock.now()) == 1
    assert await booked() == [(start, 40, 24, 40 + 2 * 24)]
    async with stage.db.transaction() as tx:
        last = EngineUsage("gw-1", start, 40, 24, stage.clock.now())
        await api.record_engine_usage(tx, [last])
    assert await losses.book(stage.db, now=stage.clock.now()) == 1
    assert await booked() == [(start, 0, 0, 0)]


async def test_a_statement_that_fails_with_an_engines_key_does_not_repeat_it(stage: Stage) -> None:
    with pytest.raises(IntegrityError) as failure:
        async with stage.db.transaction() as tx:
            await tx.execute(
                text(
                    "INSERT INTO serving.engine_key (replica_id, engine_start, secret) VALUES ('rep_x', 'eng_x', :key)"
                ),
                {"key": KEY},
            )
    assert KEY not in str(failure.value)
