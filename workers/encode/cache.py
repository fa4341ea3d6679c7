"""Embeddings by content: the same picture again is the same slot, without a second encode and without a copy."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from components import aio
from components.engines.base import EngineError, Grid
from components.media import MediaError
from components.messaging import CallError
from components.nixl_connect import Pool, PoolExhausted, Slot, TransferError
from components.protocol import ErrorCode

log = logging.getLogger(__name__)

_EXPECTED = (CallError, EngineError, MediaError, TransferError)


@dataclass(frozen=True)
class Entry:
    """An embedding of ``tokens`` rows in ``slot``; ``hash`` is the picture's, salted."""

    hash: str
    slot: Slot
    grid: Grid
    tokens: int


@dataclass
class _Making:
    """An entry on its way. Its slot is held for those who wait until the last of them has taken it or has left."""

    task: asyncio.Task[Entry]
    waiting: int = 0
    settled: bool = False


class EmbeddingCache:
    """All of the pool is cache: what nobody reads gives way, the longest unused first.

    The cache holds one reference on each slot; whoever takes an entry holds another until ``Slot.release``.

    An allocation that finds no room waits, and cannot wait for ever. Meanwhile the cache keeps nothing, so that every
    slot belongs to a picture in the tower or to a reader, and becomes free by itself: the tower waits for no memory,
    and a reader has the memory to read into before it asks (``workers/prefill/images.py``).
    """

    def __init__(self, pool: Pool, *, deadline: float) -> None:
        """An allocation waits for ``deadline`` seconds at most."""
        self._pool = pool
        self._deadline = deadline
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._making: dict[str, _Making] = {}
        self._turn = asyncio.Lock()
        self._short = False
        self.hits = 0
        self.misses = 0

    def known(self, hash: str) -> Entry | None:
        """The entry if it is there, its slot retained for the caller."""
        entry = self._entries.get(hash)
        if entry is not None:
            self._entries.move_to_end(hash)
            self.hits += 1
            entry.slot.retain()
        return entry

    async def get(self, hash: str, make: Callable[[], Awaitable[Entry]]) -> tuple[Entry, bool]:
        """The entry, its slot retained for the caller, and whether it was there already.

        Of several that ask for the same picture at once one makes it; it is made to the end also when they all leave.
        """
        entry = self.known(hash)
        if entry is not None:
            return entry, True
        self.misses += 1
        making = self._making.get(hash)
        if making is None:
            making = self._making[hash] = _Making(aio.child(self._make(hash, make), name=f"make {hash[:8]}"))
            making.task.add_done_callback(lambda _: self._made(making))
        making.waiting += 1
        try:
            entry = await asyncio.shield(making.task)
            entry.slot.retain()
            return entry, False
        finally:
            making.waiting -= 1
            self._settle(making)

    async def allocate(self, size: int) -> Slot:
        """A slot of ``size`` bytes, at the cost of unused entries; in the order of asking.

        Raises CallError ``overloaded`` when there is none within the deadline.
        """
        if size > self._pool.size:
            raise CallError(
                ErrorCode.OVERLOADED, f"an embedding of {size} bytes; all embedding memory has {self._pool.size}"
            )
        async with self._turn:
            while True:
                try:
                    return self._pool.allocate(size)
                except PoolExhausted:
                    if not self._evict():
                        break
            self._short = True
            self._forget()
            try:
                return await self._pool.reserve(size, deadline=self._deadline)
            except PoolExhausted:
                raise CallError(
                    ErrorCode.OVERLOADED, "all embedding memory is being read from", retryable=True
                ) from None
            finally:
                self._short = False

    @property
    def being_read(self) -> int:
        """Entries that somebody besides the cache holds, and those being made."""
        return sum(entry.slot.holders > 1 for entry in self._entries.values()) + len(self._making)

    async def close(self) -> None:
        await asyncio.gather(*(making.task for making in self._making.values()), return_exceptions=True)
        self._forget()

    async def _make(self, hash: str, make: Callable[[], Awaitable[Entry]]) -> Entry:
        try:
            entry = await make()
            if not self._short:
                self._entries[hash] = entry
                entry.slot.retain()
            return entry
        finally:
            del self._making[hash]

    def _made(self, making: _Making) -> None:
        error = None if making.task.cancelled() else making.task.exception()
        if not making.waiting and error is not None and not isinstance(error, _EXPECTED):
            log.error("a picture that nobody waits for could not be encoded", exc_info=error)
        self._settle(making)

    def _settle(self, making: _Making) -> None:
        """Give back what was held for those who wait, when it is made and the last of them has gone."""
        if making.waiting or not making.task.done() or making.settled:
            return
        making.settled = True
        if not making.task.cancelled() and making.task.exception() is None:
            making.task.result().slot.release()

    def _evict(self) -> bool:
        """Drop the longest unused entry that nobody reads; False when all are being read."""
        for hash, entry in self._entries.items():
            if entry.slot.holders == 1:
                del self._entries[hash]
                entry.slot.release()
                return True
        return False

    def _forget(self) -> None:
        """Drop every entry; the memory of those being read comes back when that ends."""
        while self._entries:
            self._entries.popitem()[1].slot.release()
