"""Reading ahead, so that whoever is slow gets more at once instead of holding up whoever is fast."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

from components import aio

# So that no batch is more than what is quickly worked on, and sent in one message.
_MOST = 512

T = TypeVar("T")


async def gather(items: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """The items that have come since the last look, at least one each time; ends, or raises, when ``items`` does.

    It buffers without bound: for streams that are small as a whole. An answer is a few kilobytes of token ids, and the
    decode worker gets its KV memory back sooner when a slow client does not hold it up.
    """
    waiting: list[T] = []
    news = asyncio.Event()
    ended = False

    async def read() -> None:
        nonlocal ended
        try:
            async for item in items:
                waiting.append(item)
                news.set()
        finally:
            ended = True
            news.set()

    reader = aio.child(read())
    try:
        while True:
            if waiting:
                batch = waiting[:_MOST]
                del waiting[:_MOST]
                yield batch
            elif ended:
                await reader
                return
            else:
                news.clear()
                await news.wait()
    finally:
        await aio.end(reader)
