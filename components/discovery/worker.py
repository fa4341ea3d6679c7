"""A thread that works for an event loop, and the end of it, of whichever kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from components import aio, background


class DiscoveryEnded(Exception):
    """What waits for etcd's answer waits in vain: the thread that asks has been closed, or has failed."""


class Worker:
    """Runs ``work`` on a thread of its own: whatever keeps the event loop busy must not let a lease run out.

    ``start`` it. When ``work`` raises, those who wait are told, and the process ends (``components.background``).
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._name = name
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread = background.thread(self._run, self._name, failed=self._failed)

    def post(self, action: Callable[..., object], *arguments: object) -> None:
        """Call ``action`` on the event loop; from the thread."""
        with suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(action, *arguments)

    async def unless_ended(self, event: asyncio.Event) -> None:
        """Returns once ``event`` is set. Raises ``DiscoveryEnded`` if the thread ends before."""
        if not event.is_set():
            await aio.unless(self._ended, event.wait())
        if not event.is_set():
            raise DiscoveryEnded(f"{self._name} has ended") from self._error

    async def end(self) -> None:
        """Returns once the thread has ended, which it has been told to do, or has failed."""
        await self._ended.wait()
        self._thread.join()  # Setting the event was its last act.

    def _run(self) -> None:
        self._work()
        self.post(self._ended.set)

    def _failed(self, error: BaseException) -> None:
        self._error = error
        self.post(self._ended.set)
