"""What a request held goes back, whenever its cancellation comes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from components import aio
from components.aio import on_thread, to_the_end
from tests.servers import until


async def test_a_cancellation_waits_for_the_end() -> None:
    begun, hold, events = asyncio.Event(), asyncio.Event(), []

    async def cleanup() -> None:
        begun.set()
        await hold.wait()
        events.append("cleaned")

    task = asyncio.create_task(to_the_end(cleanup()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert events == ["cleaned"]


async def test_its_error_is_raised() -> None:
    async def cleanup() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await to_the_end(cleanup())


async def test_a_cancellation_is_not_lost_in_its_error() -> None:
    begun, hold = asyncio.Event(), asyncio.Event()

    async def cleanup() -> None:
        begun.set()
        await hold.wait()
        raise ValueError("broken")

    task = asyncio.create_task(to_the_end(cleanup()))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    hold.set()
    with pytest.raises(asyncio.CancelledError) as cancelled:
        await task
    assert isinstance(cancelled.value.__cause__, ValueError)


async def test_work_on_the_loop_of_another_thread_is_awaited_and_cancelled_there() -> None:
    other = asyncio.new_event_loop()
    thread = threading.Thread(target=other.run_forever, daemon=True)
    thread.start()
    seen: list[object] = []

    async def work(hold: bool) -> int:
        seen.append(asyncio.get_running_loop() is other)
        try:
            await asyncio.sleep(3600 if hold else 0)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return 7

    assert await aio.on(other, work(False)) == 7
    waiting = asyncio.create_task(aio.on(other, work(True)))
    await until(lambda: len(seen) == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: seen == [True, True, "cancelled"])
    other.call_soon_threadsafe(other.stop)
    await asyncio.to_thread(thread.join)
    other.close()


async def test_what_a_thread_returns_or_raises() -> None:
    def broken() -> None:
        raise ValueError("broken")

    assert await on_thread(lambda: 7, "seven") == 7
    with pytest.raises(ValueError, match="broken"):
        await on_thread(broken, "broken")


async def test_a_cancelled_wait_leaves_the_thread_behind() -> None:
    begun, go = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(30)

    waiting = asyncio.create_task(on_thread(work, "long"))
    await asyncio.to_thread(begun.wait, 30)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 5)
    go.set()
