"""Bytes of pictures on their way, and what gives way when there are too many."""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    """At most ``limit`` bytes are held at once; what has been held the longest gives way.

    So memory is bounded and nobody waits for it: of those who fetch, the slowest pay.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._holds: dict[Hold, None] = {}

    def hold(self, give_way: Callable[[], object]) -> Hold:
        """Nothing yet; ``give_way`` is called, once, when all that this holds must go."""
        return Hold(self, give_way)


class Hold:
    """Some bytes of a budget, as old as its first. A context manager: leaving it gives them back."""

    def __init__(self, budget: Budget, give_way: Callable[[], object]) -> None:
        self._budget = budget
        self._give_way = give_way
        self.ended = False
        self.bytes = 0

    def add(self, count: int) -> None:
        """Hold ``count`` bytes more; older holds give way for it, and at last this one."""
        if self.ended or not count:
            return
        budget = self._budget
        budget._holds[self] = None
        self.bytes += count
        budget.used += count
        while budget.used > budget.limit:
            oldest = next(iter(budget._holds))
            oldest.end()
            oldest._give_way()

    def end(self) -> None:
        """Give the bytes back. Idempotent."""
        self.ended = True
        self._budget._holds.pop(self, None)
        self._budget.used -= self.bytes
        self.bytes = 0

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
