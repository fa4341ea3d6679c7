from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import patch

import pytest

from components.nixl_connect import Connector
from components.protocol import BufferImage, UrlImage
from components.telemetry.trace import Trace
from frontend.errors import ApiError
from frontend.images import ImageShelf
from frontend.payloads import Payload
from frontend.validate import ImageReference
from tests.servers import until

POOL = 1_000_000


@pytest.fixture
async def shelf() -> AsyncIterator[ImageShelf]:
    async with Connector() as connector:
        yield ImageShelf(connector, await connector.create_pool(POOL), max_bytes=600_000)
        assert connector.counters().leases == 0
        assert connector.counters().pool_used_bytes == 0


def reference(data: bytes, place: int = 0) -> ImageReference:
    written = base64.b64encode(data)
    return ImageReference("data:image/png;base64,", f"messages.0.content.{place}", Payload(written, 0, len(written)))


async def test_bytes_lie_in_the_pool_while_the_block_runs(shelf: ImageShelf) -> None:
    pictures = [bytes([number]) * size for number, size in ((1, 1), (2, 1000), (3, 300_000))]
    url = ImageReference("https://example.invalid/", "messages.0.content.9")
    trace = Trace("frontend")
    async with shelf.expose([*map(reference, pictures), url], 30.0, trace) as sources:
        buffers = [source for source in sources if isinstance(source, BufferImage)]
        assert [source.size for source in buffers] == [1, 1000, 300_000]
        assert [source.sha256 for source in buffers] == [hashlib.sha256(data).hexdigest() for data in pictures]
        assert sources[3] == UrlImage(url="https://example.invalid/")
        assert shelf.connector.counters().leases == 3
        assert shelf.pool.used >= 301_001
    # Nothing has moved: the encode worker counts the bytes it reads.
    assert [(step.name, step.bytes) for step in trace.steps] == [("expose image", 0)] * 3
    await until(lambda: shelf.pool.used == 0)


async def test_what_is_too_large_is_refused_before_memory_is_taken(shelf: ImageShelf) -> None:
    with pytest.raises(ApiError) as caught:
        async with shelf.expose([reference(bytes(600_001), 3)], 30.0, Trace("frontend")):
            pass
    assert caught.value.status == 400
    assert (caught.value.body.error.code, caught.value.body.error.param) == ("image_too_large", "messages.0.content.3")


async def test_when_one_of_several_does_not_fit_the_others_are_let_go(shelf: ImageShelf) -> None:
    with pytest.raises(ApiError) as caught:
        async with shelf.expose([reference(bytes(550_000), place) for place in range(2)], 30.0, Trace("frontend")):
            pass
    assert (caught.value.status, caught.value.body.error.code) == (429, "overloaded")
    await until(lambda: shelf.pool.used == 0)


async def test_memory_is_not_given_back_while_a_thread_writes_to_it(shelf: ImageShelf) -> None:
    working, go_on = threading.Event(), threading.Event()

    def slow(*_: Any, **__: Any) -> None:
        working.set()
        go_on.wait(20)

    async def expose() -> None:
        async with shelf.expose([reference(bytes(200_000))], 30.0, Trace("frontend")):
            pass

    with patch("frontend.images._decode", slow):
        task = asyncio.create_task(expose())
        await until(working.is_set)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        assert shelf.pool.used > 0
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: shelf.pool.used == 0)
