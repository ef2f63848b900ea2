"""What a worker needs, as it is typed and shown."""

import pytest
import typer

from scheduler.cli_shapes import mebibytes, shape_of, shown


@pytest.mark.parametrize(("typed", "mib"), [("0", 0), ("512MiB", 512), ("16GiB", 16_384), ("1TiB", 1 << 20)])
def test_memory_is_typed_with_its_unit(typed: str, mib: int) -> None:
    assert mebibytes(typed) == mib


@pytest.mark.parametrize("typed", ["16", "16GB", "1.5GiB", "", "-1GiB"])
def test_memory_without_a_unit_or_with_another_is_refused(typed: str) -> None:
    with pytest.raises(typer.Exit):
        mebibytes(typed)


def test_spread_may_be_typed_with_a_hyphen() -> None:
    assert shape_of(0.5, 4, "16GiB", "same-node", None)["spread"] == "same_node"


def test_a_worker_is_shown_in_one_line() -> None:
    row = {"gpu_milli": 500, "cpu_milli": 4000, "memory_mib": 16_384, "spread": "apart", "topology": "rack"}
    assert shown(row) == "0.5 accelerators, 4 CPUs, 16 GiB, apart, same rack"
