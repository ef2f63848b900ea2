"""The mix of recent work makes the prices by which production places."""

from scheduler.mix import Mix, recent_shapes
from scheduler.placement import BEST_FIT
from scheduler.vocabulary import Shape
from tests.support.scheduling import City


async def test_what_was_asked_for_lately_sets_where_work_goes(city: City) -> None:
    firm, mix, policy = await city.firm(quota=2), Mix(), city.terms.policy
    await mix.look(city.db, city.clock)
    assert mix.applied(policy).scoring is BEST_FIT, "nothing was asked for yet"
    for gpus in (0.65, 0.65, 0.32):
        await city.submit(firm, gpus=gpus)
    async with city.db.transaction() as tx:
        assert await recent_shapes(tx, now=city.clock.now()) == {Shape.of(650): 2, Shape.of(320): 1}
    await mix.look(city.db, city.clock)
    assert mix.applied(policy).scoring is not BEST_FIT
    assert mix.applied(policy).reservations == policy.reservations
    assert mix.applied(policy).scoring.weights == policy.scoring.weights
    known = mix.applied(policy).scoring.packing
    await mix.look(city.db, city.clock)
    assert mix.applied(policy).scoring.packing is known, "the same mix is not priced again"
