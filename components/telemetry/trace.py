"""The way a request took: hops, measured where they happen and handed up with the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Step:
    """A hop being measured; set ``bytes`` and ``lane`` when a transfer is part of it."""

    stage: str
    name: str
    start: float = field(default_factory=time.time)
    milliseconds: float = 0.0
    bytes: int = 0
    lane: str = ""


@dataclass
class Trace:
    """Collects the steps of one request in one panel."""

    stage: str
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Measure the block as one step; it is recorded also when the block raises."""
        step = Step(self.stage, name)
        began = time.perf_counter()
        try:
            yield step
        finally:
            step.milliseconds = (time.perf_counter() - began) * 1e3
            self.steps.append(step)

    def add(self, name: str, seconds: float, *, ago: float = 0.0, bytes: int = 0, lane: str = "") -> None:
        """Record a step that ended ``ago`` seconds ago and was measured elsewhere."""
        self.steps.append(Step(self.stage, name, time.time() - ago - seconds, seconds * 1e3, bytes, lane))
