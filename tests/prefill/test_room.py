"""Memory for a request's pictures is collected by one request at a time: none waits for ever, none gives up a part."""

from __future__ import annotations

import asyncio
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from components.engines.base import ImageInfo
from components.messaging import CallError
from components.nixl_connect import Device, Pool
from components.nixl_connect.pool import Slab
from workers.prefill.images import ImageReader

ROW = 256
ROWS = 64


def reader(pool: Pool, deadline: float = 30.0) -> ImageReader:
    nobody: Any = None
    format: Any = SimpleNamespace(row_bytes=ROW)
    return ImageReader(nobody, nobody, pool, nobody, format, deadline=deadline)


def pictures(*tokens: int) -> list[ImageInfo]:
    return [ImageInfo((1, 2, 2), count, "") for count in tokens]


@pytest.mark.parametrize("seed", range(10))
async def test_many_requests_of_many_pictures_all_get_room(seed: int) -> None:
    """Each alone fits, two seldom do; with a part each, several would wait for one another."""
    random = Random(seed)
    pool = Pool(Slab(ROWS * ROW, Device("cpu"), None))
    images = reader(pool)

    async def request() -> None:
        await asyncio.sleep(random.random() / 100)
        slots = await images.room(pictures(*(random.randint(1, ROWS // 8) for _ in range(random.randint(1, 8)))))
        try:
            for _ in range(random.randrange(5)):
                await asyncio.sleep(0)
        finally:
            for slot in slots:
                slot.release()

    requests = [asyncio.create_task(request()) for _ in range(100)]
    for leaving in random.sample(requests, 10):
        await asyncio.sleep(0)
        leaving.cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), 60)
    assert {type(each) for each in outcomes} <= {type(None), asyncio.CancelledError}
    assert pool.used == 0


async def test_waiting_for_room_ends_and_leaves_nothing() -> None:
    pool = Pool(Slab(ROWS * ROW, Device("cpu"), None))
    images = reader(pool, deadline=0.05)
    (taken,) = await images.room(pictures(ROWS // 2))
    with pytest.raises(CallError) as caught:
        await images.room(pictures(ROWS // 4, ROWS // 2))
    assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
    taken.release()
    assert pool.used == 0
