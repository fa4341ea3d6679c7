"""The thread that an engine computes on: what it works on and since when, and what follows when that fails.

A step that fails takes down the requests it fails for, and nobody else: it is taken again with each of its requests
alone. What fails outside a step, or leaves the GPU unusable, ends the thread, and with it the process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import torch

from components import background
from components.aio import end
from components.engines.base import EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

SLOW_SECONDS = 30.0
"""A step that takes longer is spoken of: the longest prompts take some seconds, on a busy CPU a few times that."""
_LAST_SECONDS = 5.0
"""How long ``close`` waits for the step under way."""


class ComputeThread:
    """``work`` runs on it from ``start`` on, and takes its steps by ``each``.

    When it has ended by an error, ``check`` raises, and ``died`` is called on the event loop with what to fail those
    with who wait for the thread.
    """

    def __init__(
        self, name: str, device: torch.device, work: Callable[[], None], *, died: Callable[[EngineError], None]
    ):
        self._name = name
        self._device = device
        self._work = work
        self._died = died
        self._gone = asyncio.Event()
        self._step: tuple[float, str] | None = None
        """When the step under way began, and what it is"""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = background.thread(self._run, self._name, failed=self._failed)
        self._watch = background.task(self._watching(), f"watch over {self._name}")

    async def close(self) -> bool:
        """Whoever calls it has told ``work`` to return. False when it does not."""
        await end(self._watch)
        await asyncio.to_thread(self._thread.join, _LAST_SECONDS)
        if self._thread.is_alive():
            log.error("%s does not end: %s", self._name, self._step and self._step[1])
        return not self._thread.is_alive()

    @property
    def step_seconds(self) -> float:
        """Age of the step under way; 0 between two."""
        step = self._step
        return 0.0 if step is None else time.monotonic() - step[0]

    def check(self) -> None:
        """Raises EngineError when the thread has died: another worker has to do it."""
        if self._gone.is_set():
            raise self._error()

    async def death(self) -> NoReturn:
        """Raises EngineError once the thread has died."""
        await self._gone.wait()
        raise self._error()

    def each(self, work: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R | EngineError]:
        """What ``work`` makes of each of the ``batch``, taken in one go; where that fails, one after the other.

        ``work`` must be able to begin anew after an error. Raises what makes going on pointless.
        """
        self._step = time.monotonic(), f"{self._name} of {len(batch)}"
        try:
            return list(work(batch))
        except Exception as error:  # Of torch, transformers, our own: whatever it is, it is not the neighbours' affair.
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # Raises if the context is broken, as after an illegal access.
            if len(batch) == 1:
                log.error("%s of a request failed", self._name, exc_info=error)
                return [self._error_of(error)]
        finally:
            self._step = None
        log.warning("%s of %d requests failed, now one by one", self._name, len(batch))
        return [result for one in batch for result in self.each(work, [one])]

    def _run(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # Else this thread's streams are those of the first GPU.
        self._work()

    def _error_of(self, error: Exception) -> EngineError:
        if isinstance(error, EngineError):
            return error
        return EngineError("internal", f"{self._name} failed: {type(error).__name__}: {error}")

    def _error(self) -> EngineError:
        return EngineError("unavailable", f"the {self._name} thread of this worker died", retryable=True)

    def _failed(self, _: BaseException) -> None:
        def tell() -> None:
            self._gone.set()
            self._died(self._error())

        self._loop.call_soon_threadsafe(tell)

    async def _watching(self) -> None:
        said: tuple[float, str] | None = None
        while True:
            await asyncio.sleep(SLOW_SECONDS / 10)
            step = self._step
            if step is not None and step is not said and time.monotonic() - step[0] > SLOW_SECONDS:
                said = step
                log.warning("%s takes more than %g s", step[1], SLOW_SECONDS)
