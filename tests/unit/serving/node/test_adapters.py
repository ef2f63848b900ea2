"""The adapters of one engine follow serving's orders; only the two ends of the wire are stood in for."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from serving.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from serving.node import adapters as module
from serving.node.adapters import Adapters
from serving.node.control_client import Away, ControlClient, Order, Refused
from serving.node.engine_client import EngineClient, EngineRefused
from tests.support.adapters import config_file, weights_file
from tests.support.attempts import sha256

BASE = "smollm2-135m-instruct"
ID, OTHER = "adp_00000001", "adp_00000002"


class Shelf:
    """Serving's end: files by adapter, and how it fails."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.problem: Exception | None = None
        self.reads = 0

    def put(self, adapter_id: str, config: bytes, weights: bytes, *, sha: str | None = None) -> Order:
        self.files[adapter_id] = {CONFIG_FILE: config, WEIGHTS_FILE: weights}
        url = f"/adapters/{adapter_id}"
        return Order(id=adapter_id, lora_name=adapter_id, url=url, sha256=sha or sha256(weights), bytes=len(weights))

    async def read(self, order: Order, file: str) -> AsyncIterator[bytes]:
        self.reads += 1
        if self.problem is not None:
            raise self.problem
        content = self.files[order.id][file]
        for start in range(0, len(content), 100):
            yield content[start : start + 100]


class EngineStandIn:
    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.refuses = False

    async def load(self, adapter_id: str, folder: Path) -> None:
        if self.refuses:
            raise EngineRefused("it does not fit")
        self.folders[adapter_id] = folder

    async def unload(self, adapter_id: str) -> None:
        self.folders.pop(adapter_id, None)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def engine() -> EngineStandIn:
    return EngineStandIn()


@pytest.fixture
def adapters(shelf: Shelf, engine: EngineStandIn, tmp_path: Path) -> Adapters:
    return Adapters(cast(ControlClient, shelf), cast(EngineClient, engine), base_model=BASE, folder=tmp_path / "a")


def good(shelf: Shelf, adapter_id: str = ID) -> Order:
    return shelf.put(adapter_id, config_file(), weights_file())


async def test_an_ordered_adapter_is_verified_and_loaded(
    shelf: Shelf, engine: EngineStandIn, adapters: Adapters
) -> None:
    await adapters.follow([good(shelf)])
    assert (adapters.loaded, adapters.loading, adapters.failed) == ([ID], [], {})
    assert (engine.folders[ID] / "adapter_model.safetensors").read_bytes() == shelf.files[ID][
        "adapter_model.safetensors"
    ]


async def test_the_config_is_written_anew(shelf: Shelf, engine: EngineStandIn, adapters: Adapters) -> None:
    config: dict[str, Any] = json.loads(config_file())
    config["auto_mapping"] = {"base_model_class": "Evil", "parent_library": "os"}
    await adapters.follow([shelf.put(ID, json.dumps(config).encode(), weights_file())])
    written = json.loads((engine.folders[ID] / CONFIG_FILE).read_text())
    assert "auto_mapping" not in written and written["peft_type"] == "LORA"


async def test_what_is_not_ordered_any_more_is_unloaded_and_removed(
    shelf: Shelf, engine: EngineStandIn, adapters: Adapters
) -> None:
    orders = [good(shelf), good(shelf, OTHER)]
    await adapters.follow(orders)
    folder = engine.folders[ID]
    await adapters.follow(orders[1:])
    assert adapters.loaded == [OTHER] and list(engine.folders) == [OTHER]
    assert not folder.exists()


async def test_weights_with_another_hash_are_refused_for_good(
    shelf: Shelf, engine: EngineStandIn, adapters: Adapters
) -> None:
    order = shelf.put(ID, config_file(), weights_file(), sha="0" * 64)
    await adapters.follow([order])
    reads = shelf.reads
    await adapters.follow([order])
    assert "hash" in adapters.failed[ID] and engine.folders == {} and shelf.reads == reads


@pytest.mark.parametrize(
    ("config", "weights", "why"),
    [
        (config_file(), b"\x80\x04\x95 a pickle", "not a safetensors"),
        (config_file(base_model_name_or_path="another"), weights_file(), "another base model"),
        (b"not json", weights_file(), "not a JSON object"),
    ],
)
async def test_files_that_do_not_pass_never_reach_the_engine(
    shelf: Shelf, engine: EngineStandIn, adapters: Adapters, config: bytes, weights: bytes, why: str
) -> None:
    await adapters.follow([shelf.put(ID, config, weights)])
    assert why in adapters.failed[ID] and engine.folders == {}


async def test_one_bad_adapter_does_not_keep_the_others_out(shelf: Shelf, adapters: Adapters) -> None:
    await adapters.follow([shelf.put(ID, b"{}", b"x" * 20), good(shelf, OTHER)])
    assert adapters.loaded == [OTHER] and list(adapters.failed) == [ID]


async def test_an_adapter_the_engine_refuses_is_reported(
    shelf: Shelf, engine: EngineStandIn, adapters: Adapters
) -> None:
    engine.refuses = True
    await adapters.follow([good(shelf)])
    assert adapters.failed == {ID: "it does not fit"}


async def test_a_control_plane_that_is_away_is_asked_again_later(
    shelf: Shelf, adapters: Adapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.0)
    shelf.problem = Away("ConnectError")
    order = good(shelf)
    await adapters.follow([order])
    assert adapters.loaded == [] and adapters.failed == {}
    shelf.problem = None
    await adapters.follow([order])
    assert adapters.loaded == [ID]


async def test_a_refused_download_is_reported(shelf: Shelf, adapters: Adapters) -> None:
    shelf.problem = Refused("adapter_not_found, HTTP 404")
    await adapters.follow([good(shelf)])
    assert "adapter_not_found" in adapters.failed[ID]
