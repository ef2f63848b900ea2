"""Adapters from finished fine-tunes: registered once, refused with a reason, owned by one firm."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kit.auth import SYSTEM, Principal, PrincipalKind
from kit.blobs import Blobs
from kit.clock import FixedClock
from kit.db import Database
from kit.errors import Conflict
from serving import adapter_catalogue, api, catalogue, registrar
from serving.adapter_catalogue import register_from_job
from serving.adapter_files import BadAdapter
from serving.vocabulary import AdapterState
from tests.support.adapters import BASE, config_file, weights_file
from tests.support.artifacts import finished_training
from tests.support.money import open_firm
from tests.support.serving import add_model, add_project, model_spec

SOMEBODY = Principal(PrincipalKind.MEMBER, "mem_1", "firm_1")


class Studio:
    """A firm whose fine-tune jobs finish."""

    def __init__(self, db: Database, blobs: Blobs, clock: FixedClock) -> None:
        self.db, self.blobs, self.clock = db, blobs, clock
        self.firm_id = self.project_id = ""

    async def open(self) -> "Studio":
        async with self.db.transaction() as tx:
            self.firm_id = await open_firm(tx, now=self.clock.now())
            self.project_id = await add_project(tx, self.firm_id, now=self.clock.now())
        return self

    async def trains(self, **made: Any) -> str:
        async with self.db.transaction() as tx:
            return await finished_training(tx, self.blobs, self.firm_id, self.project_id, now=self.clock.now(), **made)

    async def register(self) -> int:
        return await registrar.register_new(self.db, self.blobs, now=self.clock.now())

    async def adapters(self) -> list[tuple[str, str, str | None]]:
        async with self.db.transaction() as tx:
            found = await adapter_catalogue.list_adapters(tx, self.firm_id)
        return [(one.name, one.state.value, one.reason) for one in found]


@pytest.fixture
async def studio(db: Database, clock: FixedClock, tmp_path: Path) -> Studio:
    """An active firm on a platform that has the base model."""
    async with db.transaction() as tx:
        await add_model(tx, now=clock.now())
    return await Studio(db, Blobs(f"file://{tmp_path}"), clock).open()


async def test_a_finished_fine_tune_becomes_an_adapter_once(studio: Studio) -> None:
    job = await studio.trains()
    assert await studio.register() == 2
    assert await studio.register() == 0
    async with studio.db.transaction() as tx:
        (adapter,) = await adapter_catalogue.list_adapters(tx, studio.firm_id)
    assert (adapter.name, adapter.state, adapter.rank, adapter.base_model) == ("lore", "active", 8, BASE)
    assert adapter.job_id == job and adapter.firm_id == studio.firm_id and adapter.project_id == studio.project_id
    again = await register_from_job(studio.db, studio.blobs, job, now=studio.clock.now())
    assert again is not None and again.id == adapter.id
    assert await studio.adapters() == [("lore", "active", None)]


async def test_a_registrar_that_died_before_it_moved_on_changes_nothing(studio: Studio) -> None:
    await studio.trains()
    await studio.register()
    async with studio.db.transaction() as tx:
        await tx.execute(text("DELETE FROM kit.cursor"))
    assert await studio.register() == 2
    assert await studio.adapters() == [("lore", "active", None)]


async def test_what_is_served_is_the_rebuilt_config_not_the_jobs(studio: Studio) -> None:
    await studio.trains(config=config_file(auto_mapping={"parent_library": "evil"}))
    await studio.register()
    async with studio.db.transaction() as tx:
        raw = (await tx.execute(text("SELECT config FROM serving.adapter"))).scalar_one()
    config = json.loads(bytes(raw))
    assert config["base_model_name_or_path"] == BASE and "auto_mapping" not in config


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ({"weights": pickle.dumps({"w": list(range(100))})}, "not a safetensors file"),
        ({"weights": b""}, "not a safetensors file"),
        ({"weights": weights_file(rank=4)}, "another rank"),
        ({"config": config_file(rank=32), "weights": weights_file(rank=32)}, "from 1 to 16"),
        ({"config": config_file(extra_module_path="x")}, "extra_module_path"),
        ({"config": b"not json"}, "not a JSON object"),
        ({"config": config_file(base_model_name_or_path="other")}, "another base model"),
        ({"base_model": "other"}, "no base model"),
        ({"adapter_name": BASE}, "taken by a base model"),
        ({"adapter_name": "Not A Name"}, "cannot be an adapter's name"),
        ({"adapter_name": "adp_01hx"}, "cannot be an adapter's name"),
    ],
)
async def test_an_adapter_that_cannot_be_served_is_kept_refused_with_the_reason(
    studio: Studio, made: Mapping[str, Any], reason: str
) -> None:
    await studio.trains(**made)
    await studio.register()
    ((_, state, why),) = await studio.adapters()
    assert state == AdapterState.REFUSED
    assert why is not None and reason in why
    async with studio.db.transaction() as tx:
        assert (await api.route_table(tx)).adapters == {}


async def test_files_that_a_script_named_like_an_adapter_are_not_one(studio: Studio) -> None:
    job = await studio.trains(recipe="script")
    await studio.register()
    assert await register_from_job(studio.db, studio.blobs, job, now=studio.clock.now()) is None
    assert await studio.adapters() == []


async def test_a_taken_name_is_refused_and_another_one_can_be_given(studio: Studio) -> None:
    await studio.trains()
    second = await studio.trains()
    await studio.register()
    assert [state for _, state, _ in await studio.adapters()] == ["active", "refused"]
    now = studio.clock.now()
    with pytest.raises(Conflict) as refusal:
        await register_from_job(studio.db, studio.blobs, second, now=now, name="lore", by=SOMEBODY)
    assert refusal.value.code == "adapter_name_taken"
    given = await register_from_job(studio.db, studio.blobs, second, now=now, name="lore-2", by=SOMEBODY)
    assert given is not None and given.state is AdapterState.ACTIVE
    assert [(name, state) for name, state, _ in await studio.adapters()] == [("lore", "active"), ("lore-2", "active")]


async def test_another_name_does_not_make_bad_files_good(studio: Studio) -> None:
    job = await studio.trains(weights=b"junk")
    await studio.register()
    with pytest.raises(BadAdapter):
        await register_from_job(studio.db, studio.blobs, job, now=studio.clock.now(), name="lore-2", by=SOMEBODY)
    assert [state for _, state, _ in await studio.adapters()] == ["refused"]


async def test_two_firms_may_use_one_name_and_neither_sees_the_other(studio: Studio) -> None:
    other = await Studio(studio.db, studio.blobs, studio.clock).open()
    await studio.trains()
    await other.trains()
    await studio.register()
    assert [name for name, _, _ in await studio.adapters()] == ["lore"]
    async with studio.db.transaction() as tx:
        table = await api.route_table(tx)
    assert set(table.adapters) == {(studio.firm_id, "lore"), (other.firm_id, "lore")}
    assert len({route.id for route in table.adapters.values()}) == 2


async def test_a_base_model_cannot_take_an_adapters_name(studio: Studio) -> None:
    await studio.trains(adapter_name="castle")
    await studio.register()
    async with studio.db.transaction() as tx:
        with pytest.raises(Conflict):
            await catalogue.register_model(tx, model_spec(name="castle"), by=SYSTEM, now=studio.clock.now())


async def test_a_deleted_adapters_name_is_free_again(studio: Studio) -> None:
    await studio.trains()
    await studio.register()
    async with studio.db.transaction() as tx:
        (adapter,) = await adapter_catalogue.list_adapters(tx, studio.firm_id)
        await adapter_catalogue.retire(tx, adapter.id, by=SYSTEM, now=studio.clock.now())
        await adapter_catalogue.finish_retirements(tx, now=studio.clock.now())
    await studio.trains()
    await studio.register()
    assert await studio.adapters() == [("lore", "active", None)]
