"""Embeddings stay until those who wait have taken them; allocation waits for readers, never for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from components import aio
from components.media import MediaError
from components.messaging import CallError
from components.nixl_connect import Device, Pool
from components.nixl_connect.pool import Slab
from tests.waiting import until
from workers.encode.cache import EmbeddingCache, Entry

SIZE = 4096


def pool(slots: int) -> Pool:
    return Pool(Slab(slots * SIZE, Device("cpu"), None))


def cache_of(pool: Pool, deadline: float = 10.0) -> EmbeddingCache:
    return EmbeddingCache(pool, deadline=deadline)


def maker(cache: EmbeddingCache, name: str, after: asyncio.Event | None = None) -> Callable[[], Awaitable[Entry]]:
    async def make() -> Entry:
        if after is not None:
            await after.wait()
        return Entry(name, await cache.allocate(SIZE), (1, 2, 2), 1)

    return make


async def take(cache: EmbeddingCache, name: str, after: asyncio.Event | None = None) -> None:
    """As a reader does: the slot is written to and read while it is held."""
    entry, _ = await cache.get(name, maker(cache, name, after))
    view = entry.slot.numpy()
    view[:] = ord(name[0])
    await asyncio.sleep(0)
    assert (view == ord(name[0])).all()
    entry.slot.release()


async def test_what_was_just_made_is_there_for_those_who_wait() -> None:
    """Memory for one: the second is made in the very step in which the first one's waiters wake up."""
    memory = pool(1)
    cache = cache_of(memory)
    go = asyncio.Event()
    takers = [aio.child(take(cache, name, go)) for name in "aaabbbccc"]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*takers)
    await cache.close()
    assert memory.used == 0


async def test_waiters_that_leave_take_nothing_with_them() -> None:
    memory = pool(2)
    cache = cache_of(memory)
    go = asyncio.Event()
    staying, leaving = aio.child(take(cache, "a", go)), aio.child(take(cache, "a", go))
    await asyncio.sleep(0)
    leaving.cancel()
    go.set()
    await staying
    gone = aio.child(take(cache, "b", asyncio.Event()))
    await asyncio.sleep(0)
    await aio.end(gone)
    assert memory.used == SIZE and cache.being_read == 1  # "a" is cached, "b" still being made
    for making in cache._making.values():
        making.task.cancel()
    await cache.close()
    assert memory.used == 0


@pytest.mark.parametrize("error", [MediaError("image_undecodable", "no picture"), ZeroDivisionError()])
async def test_a_failure_that_nobody_waits_for_is_retrieved(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_of(pool(1))
    go = asyncio.Event()
    unretrieved: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unretrieved.append(context))

    async def fail() -> Entry:
        await go.wait()
        raise error

    waiter = aio.child(cache.get("a", fail))
    await asyncio.sleep(0)
    await aio.end(waiter)
    go.set()
    await until(lambda: cache.being_read == 0, lambda: cache.being_read)
    del waiter
    assert unretrieved == []
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == (not isinstance(error, MediaError))  # a bug of ours is; a stranger's picture is not


async def test_an_allocation_waits_for_a_reader_and_gets_its_memory() -> None:
    memory = pool(1)
    cache = cache_of(memory)
    read, _ = await cache.get("a", maker(cache, "a"))
    second = aio.child(take(cache, "b"))
    await asyncio.sleep(0.05)
    assert not second.done()
    read.slot.release()
    await second
    await cache.close()
    assert memory.used == 0


async def test_an_allocation_does_not_wait_for_ever() -> None:
    cache = cache_of(pool(1), deadline=0.1)
    read, _ = await cache.get("a", maker(cache, "a"))
    with pytest.raises(CallError) as caught:
        await take(cache, "b")
    assert (caught.value.code, caught.value.retryable) == ("overloaded", True)
    with pytest.raises(CallError):
        await cache.allocate(2 * SIZE)
    read.slot.release()


async def test_more_pictures_than_memory_all_get_their_turn() -> None:
    memory = pool(3)
    cache = cache_of(memory)
    names = [chr(ord("a") + number % 20) for number in range(200)]
    await asyncio.gather(*(take(cache, name) for name in names))
    await cache.close()
    assert memory.used == 0
