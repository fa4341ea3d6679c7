"""Background work: the threads and tasks that run for as long as their owner, and what happens when one fails.

The rule, in this one place: **what ends unexpectedly fails what waits for it, is logged with its cause, and ends the
process**, which its supervisor restarts. A process that has lost a heartbeat, a lease or an engine's thread still looks
well from outside, and keeps requests that nobody works on.

Work ends as expected when it returns, or when its owner cancels it. It fails by raising.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

Failed = Callable[[BaseException], object]
"""Fails whatever waits for the work; called where the work ran (its thread, or the event loop)."""

_handlers: list[Callable[[str], object]] = []
_tasks: set[asyncio.Task[None]] = set()


def task(work: Coroutine[Any, Any, None], name: str, *, failed: Failed | None = None) -> asyncio.Task[None]:
    """Run ``work`` beside everything else on this event loop. Its owner ends it by ``aio.end``."""
    running = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(running)

    def ended(running: asyncio.Task[None]) -> None:
        _tasks.discard(running)
        error = None if running.cancelled() else running.exception()
        if error is not None:
            fail(name, error, failed)

    running.add_done_callback(ended)
    return running


def thread(work: Callable[[], None], name: str, *, failed: Failed | None = None) -> threading.Thread:
    """Run ``work`` on a thread of its own, which has been started. Its owner tells it to end, and joins it.

    A daemon: a thread that hangs must not keep a process that has failed.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - the end of a thread; whatever it was, the process must know
            fail(name, error, failed)

    running = threading.Thread(target=run, name=name, daemon=True)
    running.start()
    return running


def fail(name: str, error: BaseException, failed: Failed | None = None) -> None:
    """Background work ``name`` has ended by ``error``. May be called from any thread; never raises."""
    log.critical("%s ended unexpectedly: %s: %s", name, type(error).__name__, error, exc_info=error)
    if failed is not None:
        try:
            failed(error)
        except Exception:  # Ending the process matters more.
            log.exception("what waits for %s could not be told", name)
    for handler in list(_handlers):
        handler(f"{name} ended unexpectedly")


@contextmanager
def ends_process(handler: Callable[[str], object]) -> Iterator[None]:
    """Inside the block ``handler`` hears of each failure, on the thread where it happened, and ends the process.

    The main function of a process uses it; without one a failure is only logged.
    """
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)
