"""Micro-batches: pictures of different requests go through the vision tower together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from components.engines.base import EncodeEngine, PreparedImage
from components.nixl_connect import Slot


@dataclass(frozen=True)
class _Job:
    image: PreparedImage
    slot: Slot
    done: asyncio.Future[None]


class Batcher:
    """While the tower works, what arrives waits and goes next, all at once.

    An idle tower waits up to ``window`` seconds for company only when more pictures are known to be on their way
    (``expected`` > 0): a picture alone is never held back.
    """

    def __init__(self, engine: EncodeEngine, *, max_images: int, window: float) -> None:
        self._engine = engine
        self._max_images = max_images
        self._window = window
        self._queue: asyncio.Queue[_Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "vision-tower")
        self._task = asyncio.create_task(self._work(), name="batcher")
        self.expected = 0

    async def encode(self, image: PreparedImage, slot: Slot) -> None:
        """Returns when ``slot`` holds the picture's embedding. Raises EngineError."""
        job = _Job(image, slot, asyncio.get_running_loop().create_future())
        self._queue.put_nowait(job)
        await job.done

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            batch = [await self._queue.get()]
            await self._gather(batch)
            await self._run(batch)

    async def _gather(self, batch: list[_Job]) -> None:
        try:
            async with asyncio.timeout(self._window):
                while len(batch) < self._max_images and (self.expected > len(batch) or not self._queue.empty()):
                    batch.append(await self._queue.get())
        except TimeoutError:
            pass

    async def _run(self, batch: Sequence[_Job]) -> None:
        images, slots = [job.image for job in batch], [job.slot for job in batch]
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._thread, self._engine.encode, images, slots)
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        for job in batch:
            if job.done.cancelled():
                continue
            if isinstance(outcome, BaseException):
                job.done.set_exception(outcome)
            else:
                job.done.set_result(None)
