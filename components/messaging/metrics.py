"""What a process measures of the request plane."""

from __future__ import annotations

from prometheus_client import Counter

from components.telemetry.metrics import REGISTRY

DROPPED = Counter("triptych_messages_dropped_total", "NATS messages that are not of the protocol.", registry=REGISTRY)

LOST = Counter(
    "triptych_peers_lost_total",
    "Processes with open calls that were declared dead: gone, silent, or stuck.",
    ["why"],
    registry=REGISTRY,
)
