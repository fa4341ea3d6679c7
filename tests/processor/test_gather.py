from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from processor.gather import gather


async def numbers(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


async def test_a_slow_reader_gets_more_at_once() -> None:
    batches = []
    async with aclosing(gather(numbers(100))) as items:
        async for batch in items:
            batches.append(batch)
            for _ in range(30):
                await asyncio.sleep(0)
    assert [number for batch in batches for number in batch] == list(range(100))
    assert len(batches) < 20


async def test_what_came_before_an_error_comes_first() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise ValueError("lost")

    seen: list[int] = []
    with pytest.raises(ValueError, match="lost"):
        async for batch in gather(failing()):
            seen += batch
    assert seen == [1, 2]


@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_leaving_ends_the_source(end: str) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    reading = asyncio.Event()

    async def read() -> None:
        source = endless()
        async with aclosing(source), aclosing(gather(source)) as items:
            async for _ in items:
                reading.set()
                if end == "close":
                    return

    task = asyncio.create_task(read())
    await reading.wait()
    if end == "cancel":
        task.cancel()
    await asyncio.wait([task])
    assert closed.is_set()


async def test_an_empty_source() -> None:
    assert [batch async for batch in gather(numbers(0))] == []


async def test_what_a_slow_reader_missed_comes_in_batches_of_a_bounded_size() -> None:
    async with aclosing(gather(numbers(5000))) as batches:
        first = await anext(batches)
        await asyncio.sleep(0)
        rest = [batch async for batch in batches]
    assert [*first, *(number for batch in rest for number in batch)] == list(range(5000))
    assert max(map(len, rest)) == 512
