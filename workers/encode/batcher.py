"""Micro-batches: pictures of different requests go through the vision tower together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from components import aio, background
from components.engines.base import EncodeEngine, EngineError, PreparedImage
from components.nixl_connect import Slot

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    image: PreparedImage
    slot: Slot
    done: asyncio.Future[None]

    def end(self, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class Batcher:
    """While the tower works, what arrives waits and goes next, all at once.

    An idle tower waits up to ``window`` seconds for company only when more pictures are known to be on their way
    (``expected`` > 0): a picture alone is never held back. When the tower fails at a batch, each of its pictures goes
    through alone: one that the tower cannot take fails by itself.
    """

    def __init__(self, engine: EncodeEngine, *, max_images: int, window: float) -> None:
        self._engine = engine
        self._max_images = max_images
        self._window = window
        self._waiting: asyncio.Queue[_Job] = asyncio.Queue()
        self._batch: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, "vision-tower")
        self._task = background.task(self._work(), "batcher", failed=self._fail)
        self.expected = 0

    async def encode(self, image: PreparedImage, slot: Slot) -> None:
        """Returns when ``slot`` holds the picture's embedding. Raises what the engine raises for this picture."""
        if self._task.done():
            raise EngineError("internal", "the vision tower has ended")
        job = _Job(image, slot, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(job)
        await job.done

    async def close(self) -> None:
        await aio.end(self._task)
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            self._batch = [await self._waiting.get()]
            await self._gather(self._batch)
            await self._run(self._batch)

    async def _gather(self, batch: list[_Job]) -> None:
        try:
            async with asyncio.timeout(self._window):
                while len(batch) < self._max_images and (self.expected > len(batch) or not self._waiting.empty()):
                    batch.append(await self._waiting.get())
        except TimeoutError:
            pass

    async def _run(self, batch: Sequence[_Job]) -> None:
        error = await self._tower(batch)
        if error is not None and len(batch) > 1:
            log.warning("the vision tower failed at %d pictures; each goes alone", len(batch), exc_info=error)
            for job in batch:
                job.end(await self._tower([job]))
            return
        for job in batch:
            job.end(error)

    async def _tower(self, batch: Sequence[_Job]) -> Exception | None:
        """Run the tower once; why it failed, or None."""
        images, slots = [job.image for job in batch], [job.slot for job in batch]
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.encode, images, slots)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome of these pictures alone
            return error
        return None

    def _fail(self, error: BaseException) -> None:
        while not self._waiting.empty():
            self._batch.append(self._waiting.get_nowait())
        for job in self._batch:
            job.end(error)
