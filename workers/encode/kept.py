"""Bytes of fetched pictures, for as long as somebody may need their embedding once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from components.media import Budget


class KeptBytes:
    """By content hash. When the budget is full the oldest go: whoever they belong to has waited the longest."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._kept: dict[str, list[bytes]] = {}

    def get(self, hash: str) -> bytes | None:
        kept = self._kept.get(hash)
        return kept[-1] if kept else None

    @contextmanager
    def keep(self, hash: str, data: bytes) -> Iterator[None]:
        """Kept inside the block, unless the budget needs the room."""
        self._kept.setdefault(hash, []).append(data)

        def drop() -> None:
            kept = self._kept[hash]
            kept.remove(data)
            if not kept:
                del self._kept[hash]

        with self._budget.hold(drop) as hold:
            hold.add(len(data))
            try:
                yield
            finally:
                if not hold.ended:
                    drop()
