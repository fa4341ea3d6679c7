"""What asyncio leaves to be written: a clean-up that a cancellation does not cut short, work that an event ends, and
blocking work that the end of the process does not wait for."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

from components import background

T = TypeVar("T")

_children: set[asyncio.Task[Any]] = set()
"""The event loop keeps weak references only."""


def child(work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """Start a task whose starter awaits it, or cancels it and then awaits it: its outcome is the starter's.

    A task that nobody awaits is background work and belongs to ``components.background``.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _children.add(task)
    task.add_done_callback(_children.discard)
    return task


def child_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Like ``child``, on another thread's event loop."""
    return asyncio.run_coroutine_threadsafe(work, loop)


async def on_thread(work: Callable[[], T], name: str) -> T:
    """What ``work`` returns or raises, run on a thread of its own.

    For what takes long and cannot be told to stop, such as loading a model. When this is cancelled, the thread is left
    behind, and neither the event loop nor the interpreter waits for it, as they do for ``asyncio.to_thread``.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if outcome.cancelled():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is for whoever awaits it
            error = raised
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(tell, result, error)

    background.thread(run, name)
    return await outcome


async def to_the_end(cleanup: Coroutine[Any, Any, T]) -> T:
    """Await ``cleanup`` to its end, for its result. A cancellation that comes meanwhile is raised then, not before;
    otherwise its error.

    A request can be cancelled at any ``await``, also at one in its own ``finally``: the caller dies just when the
    request has failed, a deadline is followed by a disconnect. What comes after that ``await`` would then never run.
    """
    task = child(cleanup)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` on ``loop``, which runs on another thread; a cancellation reaches it there."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``; None if ``event`` comes first, which cancels the work.

    Returns, or is cancelled, only after the work has ended.
    """
    working, waiting = child(work), child(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        await end(working, waiting)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and return when each has ended; their outcomes are dropped."""
    for task in tasks:
        task.cancel()
    await to_the_end(_gathered(tasks))


async def _gathered(tasks: tuple[asyncio.Task[Any], ...]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
