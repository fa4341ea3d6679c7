"""One request's KV on its way to the decode worker, a layer at a time."""

from __future__ import annotations

import asyncio
import threading
import time

import torch

from components.nixl_connect import DeadlineExceeded, WriteOperation


class KVWriter:
    """Joins two events that come in either order and on different threads: a layer is computed, the target is known.

    Each layer is posted as soon as both have happened, so the last layer is all that is left to move when the forward
    pass ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._computed = 0
        self._posted = 0
        self._pieces = 0
        self._operation: WriteOperation | None = None
        self._closed = False
        self._began = 0.0
        self.seconds = 0.0

    @property
    def bytes(self) -> int:
        return self._operation.bytes if self._operation else 0

    @property
    def lane(self) -> str:
        return self._operation.lane if self._operation else ""

    def computed(self, layer: int) -> None:
        """Called by the compute thread when ``layer``'s KV is in the pool (on a GPU: is on its stream)."""
        if torch.cuda.is_available():
            # NIXL does not follow streams: post only what is really there.
            torch.cuda.current_stream().synchronize()
        with self._lock:
            self._computed = max(self._computed, layer + 1)  # A batch that failed is computed once more.
            self._post()

    def attach(self, operation: WriteOperation, *, pieces_per_layer: int) -> None:
        """The target is known: ``operation`` is a staged write with ``pieces_per_layer`` buffers a layer."""
        with self._lock:
            self._operation = operation
            self._pieces = pieces_per_layer
            self._post()

    async def landed(self, seconds: float) -> None:
        """Wait until every layer is in the target's memory. Raises TransferError, also when the last layer is computed
        and that takes more than ``seconds``."""
        assert self._operation is not None, "attach() comes first"
        try:
            async with asyncio.timeout(seconds):
                await self._operation.wait_for_completion()
        except TimeoutError:
            raise DeadlineExceeded(f"the bytes were not there {seconds:g} s after the last layer") from None
        self.seconds = time.perf_counter() - self._began

    async def close(self) -> None:
        """End the write if it still goes on; returns when NIXL reads the source memory no more."""
        with self._lock:
            self._closed = True
        if self._operation is not None:
            self._operation.cancel()
            await self._operation.wait_for_release()

    def _post(self) -> None:
        if self._operation is None or self._closed or self._computed == self._posted:
            return
        self._began = self._began or time.perf_counter()
        self._operation.post(range(self._posted * self._pieces, self._computed * self._pieces))
        self._posted = self._computed
