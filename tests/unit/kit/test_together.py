"""Writes that come at once go together, and one that fails fails alone."""

import asyncio
from collections.abc import Sequence

import pytest

from kit.together import Together


async def test_what_comes_while_a_write_is_under_way_goes_into_the_next_together() -> None:
    gate, groups = asyncio.Event(), list[list[int]]()

    async def write(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        await gate.wait()
        return [item * 10 for item in items]

    together = Together(write, at_most=3)
    waiting = [asyncio.create_task(together.put(n)) for n in range(1)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(together.put(n)) for n in range(1, 6)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*waiting) == [0, 10, 20, 30, 40, 50]
    assert groups == [[0], [1, 2, 3], [4, 5]]


async def test_of_a_group_that_fails_only_the_bad_one_does() -> None:
    async def write(items: Sequence[int]) -> list[int]:
        if 2 in items:
            raise ValueError("two")
        return list(items)

    together = Together(write)
    answers = await asyncio.gather(*(together.put(n) for n in range(4)), return_exceptions=True)
    assert [answers[n] for n in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="two"):
        await together.put(2)
    assert await together.put(7) == 7


async def test_where_groups_begin_apart_a_stream_of_single_writes_becomes_few_and_the_first_does_not_wait() -> None:
    groups, time = list[list[int]](), asyncio.get_running_loop().time

    async def write(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        return list(items)

    together, began = Together(write, apart=2.0), time()
    await together.put(0)
    assert time() - began < 2.0
    stream: list[asyncio.Task[int]] = []
    for n in range(1, 5):
        stream.append(asyncio.create_task(together.put(n)))
        await asyncio.sleep(0)
    assert await asyncio.gather(*stream) == [1, 2, 3, 4]
    assert groups == [[0], [1, 2, 3, 4]]
