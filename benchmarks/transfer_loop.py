"""How long each step of the event loop took: what a call that blocks would show."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from benchmarks.transfer_points import at


@contextlib.contextmanager
def watched(steps: list[float]) -> Iterator[None]:
    """Adds the seconds of every step that a loop of this process takes inside."""
    original = asyncio.events.Handle._run

    def run(self: asyncio.Handle) -> None:
        start = time.perf_counter()
        original(self)
        steps.append(time.perf_counter() - start)

    asyncio.events.Handle._run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        asyncio.events.Handle._run = original  # type: ignore[method-assign]


def summary(steps: Sequence[float]) -> dict[str, float]:
    ordered = sorted(steps) or [0.0]
    shares = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999, "max_us": 1.0}
    return {"steps": len(ordered), **{name: round(at(ordered, share) * 1e6, 1) for name, share in shares.items()}}
