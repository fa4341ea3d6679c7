"""How long each step of the event loop took, by the clock and in processor time.

A call that blocks shows in the first. On a machine that does other work so does every time that another process, or
another thread with Python's lock, had its turn; those do not show in the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

from benchmarks.transfer_points import at


@contextlib.contextmanager
def watched(steps: list[tuple[float, float]]) -> Iterator[None]:
    """Adds the seconds, and those of processor time, of every step that a loop of this process takes inside."""
    original = asyncio.events.Handle._run

    def run(self: asyncio.Handle) -> None:
        start, worked = time.perf_counter(), time.thread_time()
        original(self)
        steps.append((time.perf_counter() - start, time.thread_time() - worked))

    asyncio.events.Handle._run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        asyncio.events.Handle._run = original  # type: ignore[method-assign]


def summary(steps: Sequence[tuple[float, float]]) -> dict[str, float]:
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
    found: dict[str, float] = {"steps": len(steps)}
    for prefix, values in (("", [each[0] for each in steps]), ("cpu_", [each[1] for each in steps])):
        ordered = sorted(values) or [0.0]
        found |= {f"{prefix}{name}_us": round(at(ordered, share) * 1e6, 1) for name, share in shares.items()}
    return found
