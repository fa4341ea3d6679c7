"""Embeddings by content: the same picture again is the same slot, without a second encode and without a copy."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from components.engines.base import Grid
from components.messaging import CallError
from components.nixl_connect import Pool, PoolExhausted, Slot
from components.protocol import ErrorCode


@dataclass(frozen=True)
class Entry:
    """An embedding of ``tokens`` rows in ``slot``; ``hash`` is the picture's, salted."""

    hash: str
    slot: Slot
    grid: Grid
    tokens: int


class EmbeddingCache:
    """All of the pool is cache: what nobody reads gives way, the longest unused first.

    The cache holds one reference on each slot; whoever takes an entry holds another until ``Slot.release``.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._making: dict[str, asyncio.Task[Entry]] = {}
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
        task = self._making.get(hash)
        if task is None:
            task = asyncio.create_task(self._make(hash, make))
            self._making[hash] = task
        entry = await asyncio.shield(task)
        entry.slot.retain()
        return entry, False

    def allocate(self, size: int) -> Slot:
        """A slot of ``size`` bytes, at the cost of unused entries. Raises CallError ``overloaded``."""
        while True:
            try:
                return self._pool.allocate(size)
            except PoolExhausted:
                if not self._evict():
                    raise CallError(
                        ErrorCode.OVERLOADED, "all embedding memory is being read from", retryable=True
                    ) from None

    @property
    def being_read(self) -> int:
        """Entries that somebody besides the cache holds, and those being made."""
        return sum(entry.slot.holders > 1 for entry in self._entries.values()) + len(self._making)

    async def close(self) -> None:
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        while self._entries:
            self._entries.popitem()[1].slot.release()

    async def _make(self, hash: str, make: Callable[[], Awaitable[Entry]]) -> Entry:
        try:
            entry = await make()
            self._entries[hash] = entry
            return entry
        finally:
            del self._making[hash]

    def _evict(self) -> bool:
        """Drop the longest unused entry that nobody reads; False when all are being read."""
        for hash, entry in self._entries.items():
            if entry.slot.holders == 1:
                del self._entries[hash]
                entry.slot.release()
                return True
        return False
