"""What a node says it has: models on its disk, and those of them that its memory still holds."""

from pathlib import Path

import pytest

from scheduler.node.cache import Cache
from scheduler.node.inventory import Read, Stock, still_warm


@pytest.mark.parametrize(
    ("reads", "warm"),
    [
        ([], []),
        ([Read("a", 4, 50)], ["a"]),
        ([Read("a", 4, 50), Read("b", 4, 60)], ["b", "a"]),
        ([Read("a", 5, 50), Read("b", 6, 60)], ["b"]),  # together more than half of the memory
        ([Read("a", 1, 50), Read("b", 11, 60)], []),  # the last one pushed everything out
        ([Read("a", 1, 9)], []),  # before the machine started
    ],
)
def test_what_was_read_last_is_warm_as_far_as_half_the_memory_holds_it(reads: list[Read], warm: list[str]) -> None:
    assert still_warm(reads, memory_bytes=20, booted_at=10) == warm


def test_a_stock_lists_what_is_there(tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in ("small", "large"):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text("{}")
    (models / "half fetched").mkdir()
    stock = Stock(Cache(tmp_path / "files", "firm_1", bytes_max=1 << 30), models, tmp_path / "marks")
    stock.mark_read("small")
    stock.mark_read("../marks")
    stock.mark_read("unknown")
    seen = stock.inventory(3)
    assert (seen.worker, seen.models, seen.warm, seen.files) == (3, ["large", "small"], ["small"], [])


def test_a_node_without_a_folder_of_models_has_none(tmp_path: Path) -> None:
    stock = Stock(Cache(tmp_path / "files", "firm_1", bytes_max=1 << 30), None, tmp_path / "marks")
    stock.mark_read("small")
    assert stock.inventory(0).models == []
