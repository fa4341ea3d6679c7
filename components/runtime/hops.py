"""The steps a panel measured, as the hops it reports."""

from __future__ import annotations

from components.protocol import Hop
from components.telemetry.trace import Trace


def hops(trace: Trace) -> tuple[Hop, ...]:
    return tuple(
        Hop(
            stage=step.stage,
            name=step.name,
            start=step.start,
            milliseconds=step.milliseconds,
            bytes=step.bytes,
            lane=step.lane,
        )
        for step in trace.steps
    )
