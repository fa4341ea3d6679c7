"""Work on pictures, in threads of its own and in bounded memory."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from components.engines.base import EncodeEngine, PreparedImage
from components.media import Limits, Opened, content_hash, open_picture

T = TypeVar("T")

_LARGE_PIXELS = 4_000_000
_SMALL_AT_ONCE = 4


class PictureThreads:
    """Large pictures are unfolded one at a time, small ones beside them a few at a time.

    So memory for pixels is that of one picture of the largest size and a little, however many are sent at once, and
    none of the small ones waits for a large one.
    """

    def __init__(self, engine: EncodeEngine, limits: Limits) -> None:
        self._engine = engine
        self._limits = limits
        self._small = ThreadPoolExecutor(_SMALL_AT_ONCE, "picture")
        self._large = ThreadPoolExecutor(1, "large-picture")

    async def hash(self, data: bytes, salt: str) -> str:
        return await _run(self._small, lambda: content_hash(data, salt))

    async def prepare(self, data: bytes) -> PreparedImage:
        """Raises MediaError, EngineError."""
        opened = await _run(self._small, lambda: open_picture(data, self._limits))
        if opened.pixels <= _LARGE_PIXELS:
            return await _run(self._small, lambda: self._engine.prepare(opened.unfold()))
        return await _run(self._large, lambda: self._prepare_large(opened))

    def close(self) -> None:
        self._small.shutdown()
        self._large.shutdown()

    def _prepare_large(self, opened: Opened) -> PreparedImage:
        try:
            return self._engine.prepare(opened.unfold())
        finally:
            _give_back_free_memory()


async def _run(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _give_back_free_memory() -> None:
    """To the system: glibc would keep what large pictures leave behind, in each thread's arena."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
